"""The verdict of a rule that can't keep a weight apart: the merged weight is needed."""

from __future__ import annotations


class Decline(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a rule: this equation needs the merged weight, and the message says why.

    Example:
        >>> from jlora import extend
        >>> @extend.rule("my_sort")
        ... def my_sort(walk, eqn, value):
        ...     raise extend.Decline("the order depends on the values")
    """
