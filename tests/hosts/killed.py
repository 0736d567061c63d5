"""train.py of which the processes in KILLED are killed while step 3 is saved, 1 before 0."""

import os
import signal
import sys
import time

import jax

import train
from jlora import _files
from jlora.checkpoint import _arrays

KILLED = os.environ["KILLED"].split()
write = _arrays._write


def killed(directory, arrays):
    if directory.parent.name == ".3" and str(jax.process_index()) in KILLED:
        half = directory.parent / "ocdbt.process_1"
        if jax.process_index():
            half.write_text(f"{os.getpid()}\n")
            (directory.parents[2] / "died").touch()
        while not half.exists() or not half.read_text().endswith("\n"):
            time.sleep(0.01)
        while not jax.process_index() and _files.runs(int(half.read_text())):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    write(directory, arrays)


if __name__ == "__main__":
    _arrays._write = killed
    sys.exit(train.main())
