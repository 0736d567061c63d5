"""The pages for those who begin or want to know how it works: what their blocks print."""

import contextlib
import io
import math
import re
from pathlib import Path

from printed import says_the_same, value

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def printed_by(page: Path):
    """For each block of Python, what the page says it prints (None: it says nothing), and does.

    All blocks of a page share one namespace of their own.
    """
    namespace: dict = {"__name__": "__main__"}
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        code, promised = block.groups()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page.name, "exec"), namespace)
        yield promised, out.getvalue()


def says(promised: str, found: str) -> bool:
    """Whether the words are the same, whole numbers too, and other numbers near.

    A number with an exponent is an error of rounding: it may be ten times as large.
    """
    return says_the_same(found, promised, _near)


def _near(is_: str, said: str) -> bool:
    if "e-" in said or "e-" in is_:
        return value(is_) <= 10 * value(said)
    if "." not in said:
        return said == is_
    return math.isclose(value(said), value(is_), rel_tol=0.03, abs_tol=0.02)
