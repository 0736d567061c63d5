"""Draws `pictures/walk.svg`: one weight through a model, as the walk sees it."""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).parents[1] / "pictures" / "walk.svg"
UNIT = 6  # pixels for a row or a column of a matrix
WIDTH, ROW, TOP, SHAPES = 620, 94, 70, 200  # SHAPES: where the column of shapes begins
W, A, B, X = "#8fb3d9", "#e8a94f", "#7fb069", "#c9c9c9"  # readable on the light card, in any theme

# What each equation makes: (name, what is said of it, the shapes); a shape is (name, rows, columns,
# colour), a text stands between shapes.
EQUATIONS = [
    ("up", "from split", [("W", 11, 7, W), "+ (", ("A", 7, 2, A), "·", ("B", 2, 11, B), ")ᵀ"]),
    ("transpose", "W moves, A and B stay",
     [("Wᵀ", 7, 11, W), "+", ("A", 7, 2, A), "·", ("B", 2, 11, B)]),
    ("dot_general", "the base product, two thin ones",
     [("x", 3, 7, X), "·", ("Wᵀ", 7, 11, W), "+", ("x·A", 3, 2, X), "·", ("B", 2, 11, B)]),
    ("tanh", "an array from here on", [("", 3, 11, X)]),
    ("dot_general", "as it is", [("", 3, 5, X)]),
]  # fmt: skip


def drawing() -> str:
    """The picture, on a card of its own colour so that it reads on any page."""
    height = TOP + ROW * len(EQUATIONS) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="15" fill="#222">',
        "<title>One weight through a model, as the walk sees it</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fbfaf7"/>',
        _text(20, 34, "the model's jaxpr", weight="bold"),
        _text(SHAPES, 34, "what stands for the weight", weight="bold"),
        _text(SHAPES, 56, "A and B are never multiplied with each other", size=13, colour="#666"),
    ]
    for number, (name, said, shapes) in enumerate(EQUATIONS):
        middle = TOP + ROW * number + ROW // 2
        if number:
            parts.append(
                f'<path d="M 30 {middle - ROW + 26} V {middle - 24} m -5 -8 l 5 8 l 5 -8" '
                'fill="none" stroke="#888" stroke-width="1.5"/>'
            )
        parts.append(_text(20, middle, name, family="ui-monospace, monospace"))
        parts.append(_text(20, middle + 19, said, size=12, colour="#666"))
        parts += _row(shapes, SHAPES + 30, middle)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(shapes: list, left: float, middle: float) -> list[str]:
    """Matrices side by side, each with its name and size below."""
    parts = []
    for each in shapes:
        if isinstance(each, str):
            parts.append(_text(left + 5, middle + 5, each, anchor="middle"))
            left += 22
            continue
        name, rows, columns, colour = each
        wide, high = columns * UNIT, rows * UNIT
        left += max(0, (44 - wide) / 2)  # room for the text below a narrow matrix
        parts.append(
            f'<rect x="{left:g}" y="{middle - high / 2:g}" width="{wide}" height="{high}" '
            f'fill="{colour}" stroke="#444"/>'
        )
        below = f"{name} {rows}&#215;{columns}".strip()
        parts.append(
            _text(left + wide / 2, middle + high / 2 + 13, below, size=11, anchor="middle")
        )
        left += wide + max(0, (44 - wide) / 2) + 16
    return parts


def _text(
    x: float, y: float, text: str, *, size: int = 15, colour: str = "#222", anchor: str = "start",
    weight: str = "normal", family: str = "",
) -> str:  # fmt: skip
    own = f' font-family="{family}"' if family else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}"{own}>{text}</text>'
    )


def files() -> dict[Path, str]:
    """The picture's file, and what stands in it."""
    return {PICTURE: drawing()}
