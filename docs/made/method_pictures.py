"""Draws a picture of each method, as plain SVG: what is frozen, what trains, how they combine."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pictures" / "methods"
WIDTH, HEIGHT = 680, 264

# A card of its own under each picture: it reads the same on a dark page and on a light one.
CARD, INK, LINE = "#f8fafc", "#1e293b", "#64748b"
FROZEN, TRAINS, MADE = "frozen", "trains", "computed"
FILLS = {FROZEN: "#cbd5e1", TRAINS: "#fdba74", MADE: "#ffffff"}

TOP, MIDDLE, BOTTOM = 76, 132, 188  # where a row of shapes has its middle


def text(x: float, y: float, words: str, *, size: int = 18, at: str = "middle") -> str:
    """Words with their middle, start or end at a point."""
    where = f'x="{x}" y="{y + size / 3:.0f}" text-anchor="{at}"'
    return f'\n<text {where} font-size="{size}" stroke="none" fill="{INK}">{words}</text>'


def box(x: float, y: float, words: str, kind: str, *, w: float = 110, h: float = 62) -> str:
    """A whole matrix, its middle at a point."""
    corner = f'x="{x - w / 2}" y="{y - h / 2}" width="{w}" height="{h}" rx="4"'
    return f'<rect {corner} fill="{FILLS[kind]}"/>' + text(x, y, words)


def factor(x: float, y: float, words: str, kind: str, *, narrows: bool, w: float = 84) -> str:
    """A thin matrix: it narrows to the rank, or widens from it."""
    left, right = (30, 11) if narrows else (11, 30)
    a, b = x - w / 2, x + w / 2
    points = f"{a},{y - left} {b},{y - right} {b},{y + right} {a},{y + left}"
    return f'<polygon points="{points}" fill="{FILLS[kind]}"/>' + text(x, y, words)


def vector(x: float, y: float, words: str, kind: str, *, h: float = 62) -> str:
    """One number for each column, its name on it."""
    return box(x, y, words, kind, w=28, h=h)


def sign(x: float, y: float, words: str) -> str:
    """A sum or a product of what meets here."""
    return f'<circle cx="{x}" cy="{y}" r="15" fill="{FILLS[MADE]}"/>' + text(x, y, words, size=20)


def arrow(*points: tuple[float, float]) -> str:
    """A line through points, with a head at the last."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" marker-end="url(#head)"/>'


def fork(x: float, *rows: float) -> str:
    """The input, which goes to each row."""
    lines = (arrow((40, MIDDLE), (64, MIDDLE), (64, row), (x, row)) for row in rows)
    return text(28, MIDDLE, "x") + "".join(lines)


def result(x: float, y: float = MIDDLE) -> str:
    """The output."""
    return arrow((x, y), (622, y)) + text(638, y, "y")


def beside(second: str, *, a: str = TRAINS, b: str = TRAINS, note: str = "") -> str:
    """W above, A and B below, their sum: what LoRA and its relatives share."""
    return (
        fork(110, TOP, BOTTOM)
        + box(300, TOP, "W", FROZEN, w=376)
        + factor(154, BOTTOM, "A", a, narrows=True)
        + arrow((196, BOTTOM), (252, BOTTOM))
        + text(224, BOTTOM - 14, "rank", size=14)
        + factor(296, BOTTOM, "B", b, narrows=False)
        + arrow((338, BOTTOM), (366, BOTTOM))
        + box(432, BOTTOM, second, MADE, w=130, h=40)
        + arrow((488, TOP), (550, TOP), (550, MIDDLE - 17))
        + arrow((497, BOTTOM), (550, BOTTOM), (550, MIDDLE + 17))
        + sign(550, MIDDLE, "+")
        + result(566)
        + text(300, MIDDLE, note, size=15)
    )


def lora() -> tuple[str, str]:
    """Two thin products beside the base product."""
    return "y = x W + s (x A) B,   s = alpha / rank", beside("times s")


def rslora() -> tuple[str, str]:
    """LoRA with another scaling."""
    return "y = x W + s (x A) B,   s = alpha / √rank", beside("alpha / √rank")


def lora_plus() -> tuple[str, str]:
    """LoRA in which B learns faster."""
    note = "A learns at the rate, B at ratio times the rate"
    return "LoRA, with two learning rates", beside("times s", note=note)


def lora_fa() -> tuple[str, str]:
    """LoRA in which A stays."""
    note = "A stays as it was drawn"
    return "LoRA, with A frozen", beside("times s", a=FROZEN, note=note)


def dora() -> tuple[str, str]:
    """The direction from the sum, the length from a vector that trains."""
    drawn = (
        box(96, TOP, "W", FROZEN)
        + factor(72, BOTTOM, "A", TRAINS, narrows=True, w=64)
        + factor(142, BOTTOM, "B", TRAINS, narrows=False, w=64)
        + arrow((151, TOP), (222, TOP), (222, MIDDLE - 17))
        + arrow((174, BOTTOM), (222, BOTTOM), (222, MIDDLE + 17))
        + text(192, BOTTOM - 12, "s", size=15)
        + sign(222, MIDDLE, "+")
        + arrow((238, MIDDLE), (268, MIDDLE))
        + box(344, MIDDLE, "by its norm", MADE, w=146)
        + arrow((417, MIDDLE), (462, MIDDLE))
        + sign(480, MIDDLE, "·")
        + vector(480, BOTTOM + 8, "m", TRAINS, h=50)
        + arrow((480, BOTTOM - 18), (480, MIDDLE + 17))
        + arrow((496, MIDDLE), (524, MIDDLE))
        + box(583, MIDDLE, "weight", MADE)
    )
    return "weight = m · (W + s A B) / ‖W + s A B‖, column by column", drawn


def qalora() -> tuple[str, str]:
    """LoRA of the sums of neighbouring inputs."""
    drawn = (
        fork(110, TOP, BOTTOM)
        + box(300, TOP, "W", FROZEN, w=376)
        + box(150, BOTTOM, "S: sums", MADE, w=78, h=40)
        + arrow((189, BOTTOM), (212, BOTTOM))
        + factor(250, BOTTOM, "A", TRAINS, narrows=True, w=72)
        + arrow((286, BOTTOM), (316, BOTTOM))
        + factor(354, BOTTOM, "B", TRAINS, narrows=False, w=72)
        + arrow((390, BOTTOM), (414, BOTTOM))
        + box(460, BOTTOM, "times s", MADE, w=88, h=40)
        + arrow((488, TOP), (550, TOP), (550, MIDDLE - 17))
        + arrow((504, BOTTOM), (550, BOTTOM), (550, MIDDLE + 17))
        + sign(550, MIDDLE, "+")
        + result(566)
        + text(300, MIDDLE, "each 32 neighbours of x are summed", size=15)
    )
    return "y = x W + s ((x S) A) B", drawn


def decomposed() -> tuple[str, str]:
    """A and B begin as the main part of W."""
    drawn = (
        box(96, MIDDLE, "W", MADE, h=96)
        + text(96, MIDDLE + 66, "before", size=15)
        + arrow((151, MIDDLE), (190, MIDDLE), (190, TOP), (238, TOP))
        + arrow((151, MIDDLE), (190, MIDDLE), (190, BOTTOM), (238, BOTTOM))
        + text(214, TOP - 14, "rest", size=15)
        + text(214, BOTTOM - 14, "main", size=15)
        + box(380, TOP, "W - s A B", FROZEN, w=280)
        + factor(284, BOTTOM, "A", TRAINS, narrows=True)
        + factor(376, BOTTOM, "B", TRAINS, narrows=False)
        + arrow((418, BOTTOM), (560, BOTTOM), (560, MIDDLE + 17))
        + text(480, BOTTOM - 14, "times s", size=15)
        + arrow((520, TOP), (560, TOP), (560, MIDDLE - 17))
        + sign(560, MIDDLE, "+")
        + arrow((576, MIDDLE), (606, MIDDLE))
        + text(628, MIDDLE, "W")
    )
    return "PiSSA, OLoRA: A and B begin with a part of W, which W gives away", drawn


def from_data() -> tuple[str, str]:
    """A few batches say where A, or A and B, point."""
    drawn = (
        box(110, BOTTOM, "batches", MADE, w=130)
        + arrow((175, BOTTOM), (238, BOTTOM))
        + text(206, BOTTOM - 14, "start", size=15)
        + box(376, TOP, "W", FROZEN, w=276)
        + factor(284, BOTTOM, "A", TRAINS, narrows=True)
        + factor(376, BOTTOM, "B", TRAINS, narrows=False)
        + arrow((418, BOTTOM), (560, BOTTOM), (560, MIDDLE + 17))
        + text(480, BOTTOM - 14, "times s", size=15)
        + arrow((514, TOP), (560, TOP), (560, MIDDLE - 17))
        + sign(560, MIDDLE, "+")
        + arrow((576, MIDDLE), (598, MIDDLE))
        + text(632, MIDDLE, "weight", size=16)
        + text(320, MIDDLE, "EVA: activations.   LoRA-GA: gradients.", size=15)
    )
    return "EVA, LoRA-GA: data says where A and B begin", drawn


def vera() -> tuple[str, str]:
    """Shared random factors, and two vectors for each layer."""
    drawn = (
        fork(110, TOP, BOTTOM)
        + box(310, TOP, "W", FROZEN, w=396)
        + factor(154, BOTTOM, "A", FROZEN, narrows=True)
        + arrow((196, BOTTOM), (222, BOTTOM))
        + vector(238, BOTTOM, "d", TRAINS)
        + arrow((252, BOTTOM), (280, BOTTOM))
        + factor(324, BOTTOM, "B", FROZEN, narrows=False)
        + arrow((366, BOTTOM), (396, BOTTOM))
        + vector(412, BOTTOM, "b", TRAINS)
        + arrow((508, TOP), (550, TOP), (550, MIDDLE - 17))
        + arrow((426, BOTTOM), (550, BOTTOM), (550, MIDDLE + 17))
        + sign(550, MIDDLE, "+")
        + result(566)
        + text(310, MIDDLE, "one A and one B for all layers", size=15)
    )
    return "y = x W + ((x A) · d) B · b", drawn


def hira() -> tuple[str, str]:
    """The base weight, entry by entry times a matrix of low rank."""
    drawn = (
        box(150, TOP, "W", FROZEN, w=176)
        + factor(104, BOTTOM, "A", TRAINS, narrows=True)
        + factor(196, BOTTOM, "B", TRAINS, narrows=False)
        + arrow((238, BOTTOM), (282, BOTTOM))
        + box(338, BOTTOM, "1 + s A B", MADE)
        + arrow((238, TOP), (440, TOP), (440, MIDDLE - 17))
        + arrow((393, BOTTOM), (440, BOTTOM), (440, MIDDLE + 17))
        + sign(440, MIDDLE, "⊙")
        + arrow((456, MIDDLE), (494, MIDDLE))
        + box(570, MIDDLE, "weight", MADE, w=150)
    )
    return "weight = W ⊙ (1 + s A B), entry by entry", drawn


def whole() -> tuple[str, str]:
    """What trains beside: a bias, a head, rows of a table."""
    rows = "".join(
        box(120, 68 + 22 * at, "", TRAINS if at in (1, 4) else FROZEN, w=150, h=20)
        for at in range(6)
    )
    drawn = (
        rows
        + text(120, 206, "rows of a table: tokens", size=15)
        + vector(330, 123, "", TRAINS, h=130)
        + text(330, 206, "a bias or a norm", size=15)
        + box(520, 123, "head", TRAINS, w=150, h=130)
        + text(520, 206, "a whole leaf: train", size=15)
    )
    return "Beside A and B: what trains as it is", drawn


PICTURES = {
    "lora": lora,
    "rslora": rslora,
    "dora": dora,
    "qalora": qalora,
    "decomposed": decomposed,
    "from-data": from_data,
    "lora-plus": lora_plus,
    "lora-fa": lora_fa,
    "whole": whole,
    "vera": vera,
    "hira": hira,
}


def svg(title: str, drawn: str) -> str:
    """The picture: its formula above, what the colours mean below."""
    kinds = "".join(
        f'<rect x="{x}" y="236" width="16" height="16" rx="3" fill="{FILLS[kind]}"/>'
        + text(x + 24, 244, kind, size=15, at="start")
        for x, kind in ((212, FROZEN), (314, TRAINS), (408, MADE))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif">\n<title>{title}</title>\n'
        f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" '
        f'orient="auto"><path d="M0,0 L7,3 L0,6 Z" fill="{LINE}" stroke="none"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{CARD}"/>\n'
        f'<g stroke="{LINE}" stroke-width="1.5">\n'
        f"{text(WIDTH / 2, 20, title)}{drawn}{kinds}\n</g>\n</svg>\n"
    )


def files() -> dict[Path, str]:
    """Each picture's file, and what stands in it."""
    return {FOLDER / f"{name}.svg": svg(*picture()) for name, picture in PICTURES.items()}
