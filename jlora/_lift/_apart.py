"""A product's result in its parts: the base product's, what the adapter adds, what comes after.

What a model does next to a product (`vmap` transposes it, a layer adds its bias) then follows the
base product directly, as it does without an adapter. XLA folds a transpose into the product before
it and fuses a bias into it, and does neither across an addition. And what a model calls by a name,
to keep it for the gradient, is what a magnitude multiplies: its gradient needs that, and the
product is quickly made of it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jlora import _layout
from jlora._lift import _compat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """``gain * (base + thins) + bias``, not yet computed."""

    base: jax.Array
    thins: tuple[jax.Array, ...]  # what each term of an adapter adds
    gain: jax.Array | None = None  # as many dimensions as the base's; those of size 1 repeat
    bias: jax.Array | None = None  # the same; where there is no gain it is in the base already

    @property
    def sum(self) -> jax.Array:
        """``base + thins``, in the base's dtype."""
        return functools.reduce(_plus, self.thins, self.base)

    def joined(self) -> jax.Array:
        """The whole, in the base's dtype."""
        result = self.sum if self.gain is None else gained(self.sum, self.gain)
        return result if self.bias is None else _plus(result, self.bias)


def _plus(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + _layout.like(y.astype(x.dtype), x)


def gained(x: jax.Array, gain: jax.Array) -> jax.Array:
    """The product with a gain, in x's dtype; in the wider of both until then."""
    wide = jnp.promote_types(x.dtype, gain.dtype)
    return (x.astype(wide) * _layout.like(gain, x)).astype(x.dtype)


def together(value: Any) -> Any:
    """The array that a value stands for; every other value as it is."""
    return value.joined() if isinstance(value, Apart) else value


def follow(eqn: Any, operands: list[Any]) -> Apart | None:
    """The result, in its parts, of what comes next; None where the whole has to be made."""
    name = eqn.primitive.name
    [at] = (at for at, operand in enumerate(operands) if isinstance(operand, Apart))
    value, others = operands[at], [*operands[:at], *operands[at + 1 :]]
    if name == "transpose":
        return jax.tree.map(lambda part: _compat.bind(eqn, [part])[0], value)
    if name in ("add", "add_any") and _is_bias(eqn, others[0], value.base) and value.bias is None:
        if value.gain is not None:
            return dataclasses.replace(value, bias=others[0])
        pair = [value.base, *others] if at == 0 else [*others, value.base]
        return dataclasses.replace(value, base=_compat.bind(eqn, pair)[0])
    if name == "name" and value.gain is not None:
        return dataclasses.replace(value, base=_compat.bind(eqn, [value.sum])[0], thins=())
    return None


def _is_bias(eqn: Any, value: Any, result: jax.Array) -> bool:
    """Whether it has the result's dimensions, repeats along some, and changes no dtype."""
    [out] = eqn.outvars
    return (
        isinstance(value, jax.Array)
        and value.ndim == result.ndim
        and value.size < result.size
        and (out.aval.shape, out.aval.dtype) == (result.shape, result.dtype)
    )
