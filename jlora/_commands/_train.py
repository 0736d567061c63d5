"""Train an adapter: what train.py does, with the same flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jlora import _file_module


def main(argv: Sequence[str]) -> int:
    """The exit status of train.py under these flags; ``--print-script`` prints it instead."""
    if list(argv) == ["--print-script"]:
        print(script().read_text(encoding="utf-8"), end="")
        return 0
    from jlora import finetune

    module = _file_module.loaded(script(), "jlora_train_script")
    description = (module.__doc__ or "").replace("python train.py", "python -m jlora train")
    described = f"{description}\n--print-script prints the script, to copy and change."
    return finetune.main(module.train, argv, description=described, command="python -m jlora train")


def script() -> Path:
    """train.py: beside this file in an installed package, at the top of a checkout.

    Raises:
        ValueError: when it is in neither place.
    """
    here = Path(__file__)
    places = here.with_name("train_script.py"), here.parents[2] / "train.py"
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"train.py is missing: expected it at {places[0]}")
