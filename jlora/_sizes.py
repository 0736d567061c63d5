"""How the sizes of a mesh's axes are written on a command line."""

from __future__ import annotations


def sizes(text: str) -> dict[str, int]:
    """``data=2,model=4`` as a dict of whole numbers.

    Raises:
        ValueError: when it is not written so, or names an axis twice.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        found = {name.strip(): int(size) for name, _, size in pairs}
    except ValueError:
        found = {}
    if not all(found) or len(found) < len(pairs):
        raise ValueError(f"{text!r}: expected axes such as data=2,model=4 or fsdp=-1")
    return found
