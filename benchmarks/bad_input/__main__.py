"""What becomes of damaged files: each is read as it is, or refused in a few lines.

    pip install -e ".[test]" && python -m benchmarks.bad_input --count 1000

A small whole specimen of each kind is damaged at random, one place or a few at a time, and read.
Counted are the damaged files that are read, those that are refused by one clear error (a ValueError
or OSError of at most 20 lines), and three things that must not happen: another exception, more
than 10 seconds, and a change that is accepted but says nothing. The same seed makes the same files.
"""

import argparse
import collections
import contextlib
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks._shared.table import Table, add_save, versions
from benchmarks.bad_input._damage import Damage
from benchmarks.bad_input._kinds import KINDS, Kind

READ, REFUSED = "read", "refused"
WRONG = ("another exception", "over 10 seconds", "silently wrong")
SECONDS, LINES = 10, 20
UNDAMAGED = Damage("nothing")


class TooLongError(BaseException):
    """Raised by the clock; no handler for errors may take it for one."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `TooLongError` after so long."""

    def stop(*_) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, specimen: Path, rng: random.Random, at: Path) -> tuple[str, str]:
    """(what became of one damaged file, what to say of it)."""
    damage = kind.damaged(specimen, at, rng)
    try:
        with limited(SECONDS):
            missed = kind.read(at, damage)
    except (ValueError, OSError) as error:
        lines = str(error).count("\n") + 1
        return (REFUSED, "") if lines <= LINES else (WRONG[0], f"{damage}: {lines} lines")
    except TooLongError:
        return WRONG[1], damage.told
    except BaseException as error:  # what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return WRONG[0], f"{damage.told}: {error!r}"[:300]
    return (WRONG[2], f"{damage.told}: {missed}") if missed else (READ, "")


def main() -> None:
    """The table in Markdown, and every file that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="damaged files, of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    add_save(parser)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    table = Table("kind", READ, REFUSED, *WRONG, "seconds")
    failed: list[str] = []
    for name in given.kinds:
        rng, began = random.Random(f"{given.seed}/{name}"), time.monotonic()
        counts: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            specimen = KINDS[name].specimen(Path(folder, "specimen"))
            KINDS[name].read(specimen.with_suffix(""), UNDAMAGED)
            for number in range(-(-given.count // len(given.kinds))):
                what, told = outcome(KINDS[name], specimen, rng, Path(folder, str(number)))
                counts[what] += 1
                failed += [f"{name} {number}, {what}: {told}"] if what in WRONG else []
        cells = [str(counts[column]) for column in table.columns[1:-1]]
        table.row(name, *cells, f"{time.monotonic() - began:.0f}")
    table.keep("bad-input", given.save, versions("jax"))
    print("\n".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
