"""Damage at random: of bytes, and of one value in JSON."""

import copy
import json
import random
from typing import Any, NamedTuple

ODD = (
    None, True, False, 0, -1, 1, 3, 2**40, 10**400, -0.5, 1e308, float("nan"), float("inf"), "",
    "x", "\ud800", "\x00", "../../etc/passwd", "(a+)+$", [], [[]], [None], [1, "x"], {}, {"x": {}},
)  # fmt: skip


class Damage(NamedTuple):
    """What was done."""

    told: str
    path: tuple[Any, ...] = ()  # of the value in JSON
    before: Any = None
    after: Any = None


def of_bytes(data: bytes, rng: random.Random) -> tuple[bytes, Damage]:
    """Cut short, or with a few bytes changed, repeated or gone."""
    at = rng.randrange(len(data))
    what = rng.choice(("cut", "flipped", "gone", "twice", "noise"))
    size = rng.choice((1, 1, 4, 64))
    changed = {
        "cut": data[:at],
        "flipped": data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        "gone": data[:at] + data[at + size :],
        "twice": data[: at + size] + data[at:],
        "noise": data[:at] + rng.randbytes(size) + data[at + size :],
    }[what]
    return changed, Damage(f"{what} at byte {at} of {len(data)}")


def of_json(value: Any, rng: random.Random) -> tuple[Any, Damage]:
    """One value changed, gone, or with a key of no meaning beside it."""
    value = copy.deepcopy(value)
    path = rng.choice(list(_places(value)))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    before = holder[path[-1]]
    if rng.random() < 0.1:
        del holder[path[-1]]
        return value, Damage(f"{path} is gone", path, before)
    after = rng.choice(ODD)
    if isinstance(before, str) and rng.random() < 0.3:
        after = before[: len(before) // 2]
    elif isinstance(before, int | float) and rng.random() < 0.3:
        after = rng.choice((before * 2, -before, before + 0.5, str(before)))
    holder[path[-1]] = after
    return value, Damage(f"{path} is {repr(after)[:60]}", path, before, after)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))


def written(value: Any) -> bytes:
    """As a file holds it."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
