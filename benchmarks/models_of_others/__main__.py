"""Adapts models of other packages as they are, and writes what came of it as JSON and as a table.

    python3.13 -m benchmarks.models_of_others   # installs them into an environment of its own
    python -m docs.made                         # the page's table, out of what that stored

The versions stand in packages.txt beside this file. Models are small and random: what is checked
is how their code uses its weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.models_of_others._environment import run_inside

# the package, as pip calls it, and the file here that makes its models
PACKAGES = {
    "google-tunix": "_tunix",
    "gemma": "_gemma",
    "equimo": "_equimo",
    "dm-haiku": "_haiku",
}


def main() -> None:
    """Checks every model, in a fresh environment unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/models-of-others.json")
    )
    parser.add_argument("--only", help="part of a model's or a package's name")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keep", type=Path, help="a folder for the environment, to use it again")
    where.add_argument("--here", action="store_true", help="with what is installed already")
    asked = parser.parse_args()
    if asked.here:
        check(asked.out, asked.only)
    else:
        only = ["--only", asked.only] if asked.only else []
        sys.exit(run_inside(["--out", str(asked.out), *only], asked.keep))


def check(out: Path, only: str | None) -> None:
    """Writes a row for each model, in the order of the files here; others' rows stay."""
    from benchmarks.models_of_others import _check

    stored = json.loads(out.read_text()) if out.exists() else {}
    found = {}
    for package, room in PACKAGES.items():
        versions = f"{metadata.version(package)}, JAX {metadata.version('jax')}"
        for name, make in importlib.import_module(f"{__package__}.{room}").MODELS.items():
            title = f"{package} {name}"
            if not only or only in title:
                row = _check.checked(*make())
                stored[title] = {"package": package, "model": name, "of": versions, **row}
                print(f"{title}: {row}", flush=True)
            if title in stored:
                found[title] = stored[title]
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
