"""Law 1 on JAX's catalogue of uses of its primitives, and what became of each adapted weight.

python tests/catalogue                   # all of it
python tests/catalogue --share 0.1       # the tenth that the tests run
python tests/catalogue --only scatter    # the harnesses whose names hold a word
JAX_ENABLE_X64=1 python tests/catalogue  # with what is float64
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1] / "library"))

import check
import harnesses
import jax
import tables
from fast_compiles import compile_fast


def main() -> int:
    """Prints the tables; 1 if something failed or is merged without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the harnesses (default: all)")
    parser.add_argument("--only", default="", help="harnesses whose names hold this word")
    settings = parser.parse_args()
    compile_fast()
    chosen = [each for each in harnesses.chosen(settings.share) if settings.only in each.fullname]

    start, outcomes = time.perf_counter(), []
    for at, harness in enumerate(chosen):
        outcomes += check.check(harness)
        if at % FORGET_EVERY == FORGET_EVERY - 1:
            jax.clear_caches()
            print(f"{at + 1} of {len(chosen)} harnesses", file=sys.stderr, flush=True)
    found = [each for each in outcomes if isinstance(each, check.Checked)]
    left_out = [each for each in outcomes if isinstance(each, check.LeftOut)]

    failed, unreasoned = tables.failures(found), tables.without_reason(found)
    print(tables.primitives(found), "\n\nLinear in the weight, but merged:\n", sep="")
    print(tables.linear_but_merged(found))
    if settings.share >= 1 and not settings.only:
        print("reasons that nothing needs:", tables.reasons_left_over(found) or "none")
    for title, lines in (("fail", failed), ("are merged without a reason", unreasoned)):
        print(f"\n{len(lines)} operands {title}", *lines, sep="\n")
    print()
    print(tables.totals(len(chosen), found, left_out))
    print(f"JAX {jax.__version__}, {time.perf_counter() - start:.0f} seconds")
    return int(bool(failed or unreasoned))


FORGET_EVERY = 100  # harnesses: compiled programs would fill the memory

if __name__ == "__main__":
    sys.exit(main())
