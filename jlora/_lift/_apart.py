"""A product's result and what the adapter adds to it, while they are still apart.

What a model does next to the result of a product (`vmap` transposes it, a layer adds its bias) then
follows the base product directly, as it does without an adapter. XLA folds a transpose into the
product before it and fuses a bias into it, and does neither across an addition.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from jlora import _layout
from jlora._lift import _compat


@dataclasses.dataclass(frozen=True)
class Apart:
    """``base`` plus what each term of an adapter adds, not yet added."""

    base: jax.Array
    thins: tuple[jax.Array, ...]

    def added(self) -> jax.Array:
        """The sum, in the base's dtype."""
        result = self.base
        for thin in self.thins:
            result = result + _layout.like(thin.astype(result.dtype), result)
        return result


def together(value: Any) -> Any:
    """The array that a value stands for; every other value as it is."""
    return value.added() if isinstance(value, Apart) else value


def follow(eqn: Any, operands: list[Any]) -> Apart | None:
    """The result of a transpose, or of a bias that is added; None where the sum has to be made."""
    name = eqn.primitive.name
    if name == "transpose":
        [value] = operands
        base, *thins = (_compat.bind(eqn, [part])[0] for part in (value.base, *value.thins))
        return Apart(base, tuple(thins))
    if name in ("add", "add_any"):
        at = 0 if isinstance(operands[0], Apart) else 1
        value, other = operands[at], operands[1 - at]
        if _is_bias(other, value.base):
            pair = [value.base, other] if at == 0 else [other, value.base]
            return Apart(_compat.bind(eqn, pair)[0], value.thins)
    return None


def _is_bias(value: Any, result: jax.Array) -> bool:
    """Whether it repeats along the result."""
    return isinstance(value, jax.Array) and math.prod(value.shape) < result.size
