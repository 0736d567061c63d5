"""What is kept for one adapted leaf: the interface that every method fills in."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._input_filter import InputFilter
from jlora._lowrank import Factored

Dims = tuple[int | None, ...]  # for each axis of an array: the weight's dimension, if it is one


class Node(abc.ABC):
    """The trainable data of one leaf, as a registered dataclass pytree.

    A method is one file with one node class. `jlora.lift`, `jlora.merge`, the optimizer, shardings
    and files know nothing of it beyond what stands here.
    """

    trainable: ClassVar[tuple[str, ...]]  # the fields that train
    decayed: ClassVar[tuple[str, ...]]  # those of them that weight decay is meant for

    @abc.abstractmethod
    def dimensions(self) -> dict[str, Dims]:
        """Which dimensions of the weight each array field has, in the field's order."""

    @abc.abstractmethod
    def adapt(self, weight: Any) -> Factored | jax.Array:
        """What computes in the weight's place: something factored, or a whole array."""

    def input_filter(self, key: jax.Array | None) -> InputFilter | None:
        """What stands between an activation and A in a call with this ``dropout_key``."""
        return None

    @abc.abstractmethod
    def unmerged(self, weight: jax.Array) -> jax.Array:
        """The frozen weight back from a merged one.

        Raises:
            ValueError: where the merged weight does not hold it any more.
        """

    @property
    @abc.abstractmethod
    def rank(self) -> int:
        """The rank of the delta; 0 where it has none."""

    def merged(self, weight: jax.Array) -> jax.Array:
        """The plain weight for inference, in its own dtype."""
        result = self.adapt(weight)
        return result.merged(weight) if isinstance(result, Factored) else result

    def part(self, dim: int, at: int) -> Node:
        """The node of the weight's slice ``at:at + 1`` along ``dim``, such as a layer of a stack.

        Raises:
            ValueError: where the merged slice depends on the others.
        """
        sliced = {  # dynamic, so that all layers of a stack share one program
            name: jax.lax.dynamic_slice_in_dim(getattr(self, name), at, 1, axis=dims.index(dim))
            for name, dims in self.dimensions().items()
            if dim in dims
        }
        return dataclasses.replace(self, **sliced)  # type: ignore

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that this node adapts, as far as its fields tell it."""
        sizes: dict[int, int] = {}
        for name, dims in self.dimensions().items():
            for dim, size in zip(dims, getattr(self, name).shape, strict=False):
                if dim is not None:
                    sizes[dim] = size
        return tuple(sizes[dim] for dim in sorted(sizes))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why this node can't adapt a leaf of ``shape``, or None."""
        for name, dims in self.dimensions().items():
            if (have := jnp.ndim(getattr(self, name))) != len(dims):
                return (
                    f"{name} has {have} dimensions, but {len(dims)} were expected. "
                    "Stacked adapters go through jax.vmap"
                )
        if self.shape != shape:
            return f"the adapter is for shape {self.shape}, the leaf has {shape}"
        return None
