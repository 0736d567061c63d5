"""What stands in the pages between marks, and is made from the code or from stored results.

A page asks for it by a line of its own::

    <!-- made: flags generate -->
    <!-- until here -->

`python -m docs.made` writes what belongs between the two. A test holds every page against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from docs.made import families, flags, results

DOCS = Path(__file__).parents[1]
# By the first word of a mark: what makes the text, given the words behind it.
MAKERS: dict[str, Callable[..., str]] = {
    "families": families.table,
    "flags": flags.table,
    "result": results.table,
}
MARKED = re.compile(r"<!-- made: ([^\n]+?) -->\n(.*?)<!-- until here -->\n", re.DOTALL)


def pages() -> list[Path]:
    """The pages with marks."""
    return [path for path in sorted(DOCS.rglob("*.md")) if MARKED.search(path.read_text("utf-8"))]


def written(page: str) -> str:
    """The page with all that is made as it should be.

    Raises:
        ValueError: when a mark asks for something that nothing makes.
    """

    def again(found: re.Match[str]) -> str:
        name, *words = found[1].split()
        if name not in MAKERS:
            raise ValueError(f"made: {found[1]}: expected one of {', '.join(MAKERS)}")
        return f"<!-- made: {found[1]} -->\n\n{MAKERS[name](*words)}\n<!-- until here -->\n"

    return MARKED.sub(again, page)
