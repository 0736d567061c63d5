"""The pages for those who begin or want to know how it works: what their blocks print."""

import contextlib
import io
import math
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


def printed(page: Path):
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


def says_the_same(promised: str, found: str) -> bool:
    """Whether the words are the same, whole numbers too, and other numbers near.

    A number with an exponent is an error of rounding: it may be ten times as large.
    """
    if NUMBER.sub("#", promised).split() != NUMBER.sub("#", found).split():
        return False
    pairs = zip(NUMBER.findall(promised), NUMBER.findall(found), strict=True)
    return all(_near(said, is_) for said, is_ in pairs)


def _near(said: str, is_: str) -> bool:
    expected, value = (float(text.replace(",", "")) for text in (said, is_))
    if "e-" in said or "e-" in is_:
        return value <= 10 * expected
    if "." not in said:
        return said == is_
    return math.isclose(expected, value, rel_tol=0.03, abs_tol=0.02)
