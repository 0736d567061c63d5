"""One process of `train.py`, forked from this one, in which everything is imported already."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as _pyplot  # noqa: F401  what a run imports, once for all
import numpy as np
import orbax.checkpoint as _orbax  # noqa: F401

import train
from benchmarks.faults._disturb import Disturb, nothing
from jlora import checkpoint, trainer


class Process(NamedTuple):
    """One that was started."""

    id: int
    printed: int  # the pipe that it prints into: no full disk stands in its way
    folder: Path


def started(flags: Sequence[str], folder: Path, disturb: Disturb = nothing) -> Process:
    """A process that runs `train.py` in the folder."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return Process(child, reads, folder)
    status = 99
    try:
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        disturb(folder)
        status = train.main([*flags, f"--out={folder}"])
        if status == 0:
            end(folder).write_text(json.dumps(_end(folder)))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(process: Process, after: float | None = None) -> int:
    """The status of the process, or minus the signal that ended it; SIGKILL after so long."""
    if after is not None:
        time.sleep(after)
        os.kill(process.id, signal.SIGKILL)
    with (
        os.fdopen(process.printed, errors="replace") as printed,
        told(process.folder).open("a") as all,
    ):
        all.write(printed.read())
    return os.waitstatus_to_exitcode(os.waitpid(process.id, 0)[1])


def told(folder: Path) -> Path:
    """What the processes in the folder printed."""
    return folder.with_name(f"{folder.name}.txt")


def end(folder: Path) -> Path:
    """What came out of the run."""
    return folder.with_name(f"{folder.name}.end.json")


def _end(folder: Path) -> dict[str, Any]:
    """The adapter's bytes, every number of the run and its scores, as sums; no timings."""
    lora, _ = checkpoint.restore(folder / "adapter")
    adapter = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(lora):
        array = np.asarray(leaf)
        adapter.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    rows = trainer.read_metrics(folder / "metrics.jsonl")
    numbers = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    scores = trainer.Run(folder).recorded("results")
    return {"adapter": adapter.hexdigest(), "metrics": numbers, "scores": scores}
