"""train.py whose processes are killed while they save step 3: process 1 has written, 0 has not."""

import os
import signal
import sys

import jax

import train
from jlora.checkpoint import _arrays

write = _arrays._write


def killed(directory, arrays):
    if directory.parent.name == ".3":
        if jax.process_index():
            (directory.parent / "ocdbt.process_1").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(directory, arrays)


if __name__ == "__main__":
    _arrays._write = killed
    sys.exit(train.main())
