"""What becomes of a run that is disturbed: resumed, it must end as one that was not.

    pip install -e ".[test]" && python -m benchmarks.faults --count 60

A small model is trained by `train.py` in processes that are forked from one in which all is
imported. They are killed at file events and at any moment, their disk is full, their states are
damaged, a second process comes to the same folder. Then the run is resumed until it is done, and
what came out is compared bit for bit: the adapter, the numbers of each step, the scores. A
traceback of ours, a start that is blocked, any other end: all count as lost. ``--quick`` is a
sample.
"""

import argparse
import collections
import gc
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks._shared.table import Table, add_save, versions
from benchmarks.bad_input._kinds import model_folder
from benchmarks.faults import _disturb, _process
from benchmarks.faults._kinds import (
    KINDS,
    Fault,
    Undisturbed,
    disk_full,
    killed_at_a_moment,
    killed_at_an_event,
    next_flags,
)  # fmt: skip

FAST = {
    "jax_platforms": "cpu",
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
QUICK = {
    "killed at a file event": 6,
    "killed at any moment": 1,
    "disk full": 2,
    "damaged state": 1,
    "two processes": 1,
}
# Orbax prints some of its own when it can't write.
OWN_FRAME = re.compile(r'File ".*(/jlora/|train\.py)')
AGAIN = 8  # times that a run is resumed at most
ON_AND_ON = (killed_at_an_event, killed_at_a_moment, disk_full)


def main() -> None:
    """Prints the table; the exit status is 1 when a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="disturbed runs, in turns by kind")
    parser.add_argument("--quick", action="store_true", help="a sample, below a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    add_save(parser)
    args = parser.parse_args()
    gc.set_threshold(20_000, 20, 20)  # tracing makes many small objects
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        for option, value in FAST.items():
            jax.config.update(option, value)
        counts = (
            QUICK
            if args.quick
            else {kind: len(range(at, args.count, len(KINDS))) for at, kind in enumerate(KINDS)}
        )
        sys.exit(report(folder, counts, args))


def report(folder: Path, counts: dict[str, int], args: argparse.Namespace) -> int:
    """Disturbs so many runs of each kind, and prints what became of them."""
    began = time.perf_counter()
    whole = undisturbed(folder)
    print(f"undisturbed: {whole.events} changes of files in {whole.seconds:.1f} s\n", flush=True)
    jobs = [(kind, number) for kind, count in counts.items() for number in range(count)]
    workers = [
        in_a_fork(judge, whole, folder, jobs[at :: args.processes], args.seed)
        for at in range(args.processes)
    ]
    for worker in workers:
        os.waitpid(worker, 0)
    lines = [line for path in folder.glob("*.judged") for line in path.read_text().splitlines()]
    good = collections.Counter(kind for kind, problem in map(json.loads, lines) if not problem)
    table = Table("the run was disturbed by", "runs", "ended as if it had not been", "did not")
    for kind, count in counts.items():
        table.row(kind, str(count), str(good[kind]), str(count - good[kind]))
    table.keep("faults", args.save, versions("jax", "orbax-checkpoint"))
    print(f"\n{time.perf_counter() - began:.0f} s")
    return int(sum(good.values()) < len(jobs))


def judge(whole: Undisturbed, folder: Path, jobs: list[tuple[str, int]], seed: int) -> None:
    """Disturbs these runs one after another, and writes down what was lost."""
    with (folder / f"{os.getpid()}.judged").open("w") as lines:
        for kind, number in jobs:
            out = folder / f"{kind.replace(' ', '-')}-{number}"
            problem = lost(KINDS[kind], whole, out, random.Random(f"{seed} {kind} {number}"))
            if problem:
                print(f"lost: {kind} {number}: {problem}", flush=True)
            print(json.dumps((kind, problem)), file=lines, flush=True)


def in_a_fork(do: Callable[..., object], *args: Any) -> int:
    """The id of a process that does it, and then ends."""
    child = os.fork()
    if not child:
        try:
            do(*args)
        finally:
            sys.stdout.flush()
            os._exit(0)
    return child


def undisturbed(folder: Path) -> Undisturbed:
    """The run to compare with; the one before it fills the cache of compiled programs."""
    model, rows = folder / "model", folder / "rows.jsonl"
    os.waitpid(in_a_fork(model_folder, model), 0)  # it starts a device
    letters = "bcbcb"  # of one token each: one shape to compile
    pairs = [{"prompt": f"{x} {y}", "completion": x + y} for x in letters for y in letters]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options = {
        "model": model, "data": rows, "steps": 6, "batch-size": 4, "rank": 2, "max-length": 24,
        "eval-rows": 2, "max-new-tokens": 3, "checkpoint-every": 2,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    events, end = folder / "events", folder / "whole"

    def counted(out: Path) -> None:
        _disturb.at_events(out, lambda count, _: events.write_text(str(count)))

    for out, disturb in ((folder / "first", _disturb.nothing), (end, counted)):
        began = time.perf_counter()
        status = _process.ended(_process.started(flags, out, disturb))
        if status:
            sys.exit(f"the undisturbed run ended with {status}:\n{_process.told(out).read_text()}")
    return Undisturbed(flags, end, int(events.read_text()), time.perf_counter() - began)


def lost(fault: Fault, whole: Undisturbed, out: Path, rng: random.Random) -> str | None:
    """What is wrong with the end of a run that was disturbed, or None."""
    problem = fault(whole, out, rng)
    for _ in range(AGAIN):
        if fault in ON_AND_ON and problem is None and rng.random() < 0.4:
            problem = fault(whole, out, rng)  # the run that goes on is disturbed, too
            continue
        if problem is None and (
            status := _process.ended(_process.started(next_flags(whole, out), out))
        ):
            problem = f"going on, status {status}"
        break
    said = _process.told(out).read_text() if _process.told(out).exists() else ""
    if problem is None and OWN_FRAME.search(said):
        problem = "a traceback"
    if problem:
        return f"{problem}\n{said[-2000:]}"
    if not _process.end(out).exists():
        return "it never ended"
    got, want = (json.loads(_process.end(each).read_text()) for each in (out, whole.folder))
    differing = [name for name in want if got[name] != want[name]]
    left = sorted(str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".lock")
    if differing or left:
        return f"differing: {differing}; left over: {left}"
    return None


if __name__ == "__main__":
    main()
