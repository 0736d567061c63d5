"""A node whose gradient tells of its weight's activations, seen through a few directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jlora import _placement
from jlora._input_filter import InputFilter
from jlora._lowrank import RANK, Axes, Dims, Factor, Factored, Product
from jlora._methods import LoraWeight
from jlora._node import Node, Shared


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sketch(Node):
    """A node that changes nothing; its gradient is X'X times its directions, and the sum of X².

    X are all activations that its weight multiplies, whatever the function does with the result.
    """

    directions: jax.Array  # (*stack, *in, width)
    energy: jax.Array  # (*stack, 1)
    shaped: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_node(cls, node: LoraWeight, directions: jax.Array) -> Sketch:
        shape = (*node.a.shape[:-1], directions.shape[-1])
        stack = node.a.shape[: len(node.axes.stack)]
        return cls(directions.reshape(shape), jnp.zeros((*stack, 1)), node.shape, node.axes)

    def matrix(self) -> jax.Array:
        """The directions as (*stack, inputs, width)."""
        stack = self.directions.shape[: len(self.axes.stack)]
        return self.directions.reshape(*stack, -1, self.directions.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shaped

    def dimensions(self) -> dict[str, Dims]:
        axes = self.axes
        return {"directions": (*axes.stack, *axes.inputs, RANK), "energy": (*axes.stack, RANK)}

    def adapt(self, weight: jax.Array, shared: Shared) -> Factored:
        """A product with zeros of rank 1, so that the filter is asked."""
        axes = self.axes
        a = jnp.zeros_like(self.directions[..., :1])
        b = jnp.zeros([*self.energy.shape, *(self.shaped[dim] for dim in axes.outputs)])
        product = Product(
            Factor(a, (*axes.stack, *axes.inputs, RANK)),
            Factor(b, (*axes.stack, RANK, *axes.outputs)),
        )
        return Factored((product,))

    def input_filter(self, key: jax.Array | None) -> InputFilter:
        axes = self.axes
        return Probe(
            Factor(self.directions, (*axes.stack, *axes.inputs, RANK)),
            Factor(self.energy, (*axes.stack, RANK)),
        )

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        return weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe(InputFilter):
    """Gives the activation on as it is, and as gradient of its own factors tells of it."""

    directions: Factor
    energy: Factor

    def __call__(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        free = len(dims) + 100  # labels that no dimension of the weight has
        labels = [free + at if dim is None else dim for at, dim in enumerate(dims)]
        rank = free - 1

        def named(factor: Factor) -> list[int]:
            return [rank if dim == RANK else dim for dim in factor.dims]

        inputs = [dim for dim in self.directions.dims if dim != RANK]
        stack = [dim for dim in self.energy.dims if dim != RANK]
        contracted = [dim for dim in inputs if dim not in stack]
        if not set(contracted) <= set(labels):
            return x  # the other way round: this product contracts the outputs

        @jax.custom_vjp
        def passed_on(x, directions, energy):
            return x

        def forward(x, directions, energy):
            return x, (x, directions)

        def backward(residuals, cotangent):
            x, directions = residuals
            wide = x.astype(jnp.float32)
            kept = [label for label in labels if label not in contracted]
            out = list(dict.fromkeys([*kept, *stack, rank]))
            own = named(self.directions)
            hidden = _placement.einsum(wide, labels, directions, own, out)
            product = _placement.einsum(wide, labels, hidden, out, own)
            squares = _placement.einsum(
                wide, labels, wide, labels, [label for label in stack if label in labels]
            )
            absent = [at for at, label in enumerate(stack) if label not in labels]
            squares = jnp.expand_dims(squares, absent)
            energy = jnp.broadcast_to(squares[..., None], self.energy.array.shape)
            return (
                cotangent,
                _placement.like(product, directions),
                _placement.like(energy, self.energy.array),
            )

        passed_on.defvjp(forward, backward)
        return passed_on(x, self.directions.array, self.energy.array)

    def moved(self, factor: Callable[[Factor], Factor]) -> Probe:
        return Probe(factor(self.directions), factor(self.energy))

    def of_all_steps(self) -> Probe:
        return self
