"""Which of a function's arguments the parameters are, counted as `jax.grad` counts them."""

from __future__ import annotations

import operator
from typing import Any


def checked(argnums: Any) -> int:
    """One position, as a number of Python's own.

    Raises:
        ValueError: when it is no whole number, or several.
    """
    try:
        return operator.index(argnums)
    except TypeError:
        raise ValueError(
            f"argnums is {argnums!r}: expected one position, that of the parameters"
        ) from None


def of_parameters(argnums: int, count: int) -> int:
    """The parameters' place among ``count`` positional arguments; negative ones count from the end.

    Args:
        argnums: from `checked`.
        count: how many there are.

    Raises:
        ValueError: when there is no such argument.
    """
    at = argnums + count if argnums < 0 else argnums
    if not 0 <= at < count:
        raise ValueError(
            f"argnums is {argnums}: expected the place of one of {max(count, 0)} positional "
            "arguments"
        )
    return at
