"""What on the site is made: from the code, from the examples, from stored results, by drawing.

A page asks for a part of it by a line of its own::

    <!-- made: flags generate -->
    <!-- until here -->

`python -m docs.made` writes what belongs between the two, and the files that are made as a whole. A
test holds all of them against what would be made now.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from docs.made import (
    example_pages,
    families,
    flags,
    layout,
    method_pictures,
    models_of_others,
    results,
    walk_drawing,
)

DOCS = Path(__file__).parents[1]
# By the first word of a mark: what makes the text, given the words behind it.
MAKERS: dict[str, Callable[..., str]] = {
    "families": families.table,
    "flags": flags.table,
    "layout": layout.table,
    "models-of-others": models_of_others.table,
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


def files() -> dict[Path, str]:
    """Every file that is made, in part or as a whole, and what should stand in it."""
    whole = example_pages.files() | method_pictures.files() | walk_drawing.files()
    return whole | {path: written(path.read_text(encoding="utf-8")) for path in pages()}
