"""Whether a text says what was promised: the words are the same, and each number is near.

Trained weights differ from one release of JAX to another in their last digits, and what they come
to differs a little more. How near is near, each room says.
"""

import re
from collections.abc import Callable

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: ?%)?")


def says_the_same(got: str, promised: str, near: Callable[[str, str], bool]) -> bool:
    """Whether the words are the promised ones, and each number is near the one in its place."""
    numbers, wanted = NUMBER.findall(got), NUMBER.findall(promised)
    return (
        NUMBER.sub("#", got).split() == NUMBER.sub("#", promised).split()
        and len(numbers) == len(wanted)
        and all(map(near, numbers, wanted))
    )


def value(number: str) -> float:
    """Of a number as it was printed."""
    return float(number.rstrip(" %").replace(",", ""))
