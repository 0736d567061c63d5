"""How many planted bugs the tests notice, and which they do not.

    pip install -e ".[test]" "mutmut==3.8" "pytest<9" && python -m benchmarks.planted_bugs

`mutmut` plants the bugs (`[tool.mutmut]` in pyproject.toml says in which files) and finds out which
tests reach each. They are judged here, because a fresh process a bug spends most of its time on
imports: one process imports everything but jlora, and forks for each bug (about a second of one
core). JAX starts no device before its first array, so that a fork is safe. First all the tests run
so without a bug, and have to pass. Stopped and called again it goes on where it was:
`mutants/judged.jsonl` has a line a bug. `rm -r mutants` begins anew, as a changed file asks for.
"""

import argparse
import collections
import contextlib
import fnmatch
import gc
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

MUTANTS = Path("mutants").absolute()
# All that the tests import, but what the bugs are planted in.
IMPORTED = (
    "numpy",
    "jax",
    "jax.numpy",
    "jax.experimental.pallas",
    "flax",
    "flax.linen",
    "flax.nnx",
    "optax",
    "optax.contrib",
    "equinox",
    "haiku",
    "hypothesis",
    "hypothesis.strategies",
    "hypothesis.extra.numpy",
    "pytest",
    "tokenizers",
    "safetensors",
    "safetensors.flax",
    "orbax.checkpoint",
)
SURVIVED, NOTICED, TIMED_OUT, UNREACHED = "survived", "noticed", "timed out", "no test reaches it"


def plant() -> None:
    """`mutants/`: the package with every bug, and which tests reach each."""
    asked = ["mutmut", "run", "--max-children", "2", "no.such.mutant"]
    done = subprocess.run(asked, capture_output=True, text=True)
    if "nothing matches" not in done.stderr + done.stdout:
        sys.exit(f"mutmut planted no bugs:\n{(done.stdout + done.stderr)[-3000:]}")


class Reach(NamedTuple):
    """The tests that reach a bug, the fastest first, and the seconds of the processor for them."""

    tests: list[str]
    limit: int  # far above what the tests take without the bug


def planted() -> dict[str, Reach]:
    """What reaches each bug."""
    stats = json.loads((MUTANTS / "mutmut-stats.json").read_text())
    reach, seconds = stats["tests_by_mangled_function_name"], stats["duration_by_test"]
    names = [
        name
        for meta in sorted(MUTANTS.glob("jlora/**/*.meta"))
        for name in json.loads(meta.read_text())["exit_code_by_key"]
    ]
    found = {}
    for name in names:
        tests = sorted(reach.get(name.rpartition("__mutmut_")[0], []), key=lambda t: seconds[t])
        found[name] = Reach(tests, 120 + int(12 * sum(seconds[test] for test in tests)))
    return found


def judge(name: str, reach: Reach) -> None:
    """Runs the tests on one bug, in a child, whose exit status is pytest's."""
    resource.setrlimit(resource.RLIMIT_CPU, (reach.limit, reach.limit + 5))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.environ |= {"MUTANT_UNDER_TEST": name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    import pytest

    quiet = ["--rootdir=.", "--tb=no", "-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    plain = ["--assert=plain", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    for tests in rounds(reach.tests):
        if status := int(pytest.main([*quiet, *plain, *tests])):
            break
    os._exit(status)


def rounds(tests: list[str], first: int = 12) -> list[list[str]]:
    """Few tests of few files, which notice most bugs, and then the rest: imports take long."""
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))[:2]
    early = [test for test in tests if test.partition("::")[0] in files][:first]
    late = [test for test in tests if test not in set(early)]
    return [early, late] if late else [early]


def verdict(status: int) -> str:
    """What an ended child's status says: any failure is a bug noticed, that of an import too."""
    if os.WIFSIGNALED(status):
        over = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return TIMED_OUT if over else NOTICED
    return SURVIVED if os.WEXITSTATUS(status) == 0 else NOTICED


def judged(bugs: dict[str, Reach], children: int):
    """(name, verdict, seconds) of each bug, as it ends."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # no child looks through what all share
    waiting, running = list(bugs), {}
    while waiting or running:
        while waiting and len(running) < children:
            name = waiting.pop(0)
            if not bugs[name].tests:
                yield name, UNREACHED, 0.0
                continue
            child = os.fork()
            if not child:
                judge(name, bugs[name])
            running[child] = name, time.monotonic(), bugs[name].limit
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            name, began, _ = running.pop(child)
            yield name, verdict(status), time.monotonic() - began
            continue
        for child, (_, began, seconds) in running.items():
            if time.monotonic() - began > 20 * seconds:  # it waits for what never comes
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def passes_without(bugs: dict[str, Reach]) -> bool:
    """Whether the tests pass where no bug is active."""
    tests = list(dict.fromkeys(test for reach in bugs.values() for test in reach.tests))
    [(_, said, _)] = judged({"none": Reach(tests, 3600)}, 1)
    return said == SURVIVED


def table(verdicts: dict[str, str]) -> str:
    """Bugs by file and what became of them, and the part that was noticed."""
    files = collections.defaultdict(collections.Counter)
    for name, said in verdicts.items():
        files[name.rpartition(".")[0]][said] += 1
        files["in all"][said] += 1
    lines = [f"{'':32}{'bugs':>6}{'noticed':>9}{'survived':>10}{'too long':>10}{'no test':>9}"]
    for file, counts in files.items():
        of = [counts[said] for said in (NOTICED, SURVIVED, TIMED_OUT, UNREACHED)]
        figures = "{:9d}{:10d}{:10d}{:9d}".format(*of)
        lines.append(f"{file:32}{sum(of):6d}{figures}  {of[0] / sum(of):6.1%}")
    return "\n".join(lines)


def main() -> None:
    """Plants what is not planted yet, judges what is not judged yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="bugs whose names match, as jlora._split.*")
    parser.add_argument("--count", type=int, help="so many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--children", type=int, default=2, help="processes at once")
    args = parser.parse_args()
    if not (MUTANTS / "mutmut-stats.json").exists():
        plant()
    os.chdir(MUTANTS)
    bugs = {n: reach for n, reach in planted().items() if fnmatch.fnmatchcase(n, args.only)}
    if args.count is not None:
        bugs = dict(random.Random(args.seed).sample(sorted(bugs.items()), args.count))
    record = MUTANTS / "judged.jsonl"
    said_before = record.read_text().splitlines() if record.exists() else []
    before = {line["name"]: line["verdict"] for line in map(json.loads, said_before)}
    verdicts = {name: said for name, said in before.items() if name in bugs}
    left = {name: reach for name, reach in bugs.items() if name not in verdicts}
    if left and not passes_without(left):
        sys.exit("the tests fail without a bug: run pytest on those of [tool.mutmut]")
    with record.open("a") as lines:
        for name, said, seconds in judged(left, args.children):
            verdicts[name] = said
            line = {"name": name, "verdict": said, "seconds": round(seconds, 1)}
            print(json.dumps(line), file=lines, flush=True)
            if said != NOTICED:
                print(f"{said}: {name}", flush=True)
    print(table(verdicts))
    print("`mutmut show NAME` prints what was changed.")


if __name__ == "__main__":
    main()
