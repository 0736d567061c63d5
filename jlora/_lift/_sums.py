"""Sums that are not added up yet: a product's in its parts, and squares before they are summed.

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

from jlora import _placement
from jlora._lift._decline import Decline
from jlora._lift._weight import Weight, gained
from jlora._lowrank import wide


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductSum:
    """``gain * (base + thins) + bias``, not yet computed: a product's result."""

    base: Any
    thins: tuple[jax.Array, ...]  # what each term of an adapter adds
    gain: jax.Array | None = None  # as many dimensions as the base's; those of size 1 repeat
    bias: jax.Array | None = None  # the same; where there is no gain it is in the base already

    @property
    def sum(self) -> Any:
        """``base + thins``, in the base's dtype."""
        return functools.reduce(_plus, self.thins, self.base)

    def added_up(self) -> Any:
        """The whole, in the base's dtype."""
        with _placement.mesh_of(self.base):
            result = self.sum if self.gain is None else gained(self.sum, self.gain)
            return result if self.bias is None else _plus(result, self.bias)

    def follow(self, walk: Any, eqn: Any, others: list[Any], *, first: bool) -> ProductSum | None:
        """The result, in its parts, of what comes next; None where the whole has to be made.

        Args:
            walk: the walk.
            eqn: the equation.
            others: its other operands.
            first: whether the sum comes before them.
        """
        name = eqn.primitive.name
        if name == "transpose":
            return jax.tree.map(lambda part: walk.bind(eqn, [part])[0], self)
        if name in ("add", "add_any") and self.bias is None and _is_bias(eqn, others[0], self.base):
            if self.gain is not None:
                return dataclasses.replace(self, bias=others[0])
            pair = [self.base, *others] if first else [*others, self.base]
            return dataclasses.replace(self, base=walk.bind(eqn, pair)[0])
        if name == "name" and self.gain is not None:
            return dataclasses.replace(self, base=walk.bind(eqn, [self.sum])[0], thins=())
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Squares:
    """A weight times itself, element by element: summed over its inputs, it needs no merged W."""

    weight: Weight
    cast: Any = dataclasses.field(default=None, metadata={"static": True})

    def follow(self, walk: Any, eqn: Any, others: list[Any], *, first: bool) -> Any:
        """The sums, or the squares in another dtype; None where the merged weight is needed."""
        name = eqn.primitive.name
        if name == "convert_element_type" and eqn.params["new_dtype"] == wide(self.weight.dtype):
            return dataclasses.replace(self, cast=eqn.params["new_dtype"])
        if name != "reduce_sum" or others:
            return None
        try:
            return walk.run.sum_of_squares(walk, eqn, self.weight, eqn.params["axes"])
        except Decline:
            return None


def _plus(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + _placement.like(y.astype(x.dtype), x)


def added_up(value: Any) -> Any:
    """The array that a sum stands for; every other value as it is."""
    return value.added_up() if isinstance(value, ProductSum) else value


def _is_bias(eqn: Any, value: Any, result: Any) -> bool:
    """Whether it has the result's dimensions, repeats along some, and changes no dtype."""
    [out] = eqn.outvars
    return (
        isinstance(value, jax.Array)
        and value.ndim == len(result.shape)
        and value.shape != result.shape
        and (out.aval.shape, out.aval.dtype) == (result.shape, result.dtype)
    )
