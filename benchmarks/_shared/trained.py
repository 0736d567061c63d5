"""What train.py's runs reached; a run that is finished in its folder is not repeated."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "train.py"


def scores(out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """The scores before and after; trains first if need be."""
    results = out / "results.json"
    if not results.exists() or "after" not in json.loads(results.read_text(encoding="utf-8")):
        subprocess.run(
            [sys.executable, str(TRAIN), "--out", str(out), "--overwrite", *flags],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return json.loads(results.read_text(encoding="utf-8"))
