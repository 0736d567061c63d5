"""Where do the packages come from: a fresh virtual environment that holds the pinned versions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PACKAGES = Path(__file__).with_name("packages.txt")
OLDEST = (3, 12)  # that the pinned JAX installs on


def run_inside(arguments: list[str], keep: Path | None) -> int:
    """Makes the environment, runs this benchmark in it, and gives its exit status.

    Args:
        arguments: what the command was called with, without what concerns the environment.
        keep: the folder for it, used again if it is there; a folder that goes away otherwise.
    """
    if sys.version_info < OLDEST:
        sys.exit(
            f"the packages are pinned for Python {OLDEST[0]}.{OLDEST[1]} or newer, and this is "
            f"{sys.version.split()[0]}: run the command with a newer one (it installs all it needs)"
        )
    with tempfile.TemporaryDirectory() as aside:
        folder = keep or Path(aside) / "others"
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
        pip = ["-m", "pip", "install", "--quiet", "--no-deps", "-r", str(PACKAGES)]
        subprocess.run([python, *pip], check=True)
        here = ["-m", "benchmarks.models_of_others", "--here", *arguments]
        return subprocess.run([python, *here], check=False).returncode
