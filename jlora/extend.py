"""The door: what a method, a rule or a frozen leaf of your own is made with."""

from jlora._lift._walk import RULES


def primitives() -> tuple[str, ...]:
    """The names of all primitives that have a rule."""
    return tuple(sorted(RULES))
