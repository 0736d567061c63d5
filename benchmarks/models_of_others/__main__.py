"""Adapts models of other packages as they are, and writes what came of it as JSON and as a table.

    pip install equimo dm-haiku && pip install --no-deps google-tunix gemma
    python -m benchmarks.models_of_others
    python -m docs.made     # the page's table, out of what that stored

A package that is not installed is left out, with a line that says so; what the file had of it
stays. Models are small and random: what is checked is how their code uses its weights.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path

from benchmarks.models_of_others import _check

# the package, as pip and as Python call it, and the file here that makes its models
PACKAGES = {
    "google-tunix": ("tunix", "_tunix"),
    "gemma": ("gemma", "_gemma"),
    "equimo": ("equimo", "_equimo"),
    "dm-haiku": ("haiku", "_haiku"),
}


def main() -> None:
    """Checks every model whose package is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/models-of-others.json")
    )
    parser.add_argument("--only", help="part of a model's or a package's name")
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for package, (module, room) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{package} is not installed: pip install {package}")
            continue
        versions = f"{metadata.version(package)}, JAX {metadata.version('jax')}"
        for name, make in importlib.import_module(f"{__package__}.{room}").MODELS.items():
            if asked.only and asked.only not in f"{package} {name}":
                continue
            row = _check.checked(*make())
            found[f"{package} {name}"] = {"package": package, "model": name, "of": versions, **row}
            print(f"{package} {name}: {row}", flush=True)
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
