"""What is kept for one adapted leaf: the interface that every method fills in."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._input_filter import InputFilter
from jlora._lowrank import RANK, Dims, Elementwise, Factored
from jlora._peft_form import PeftForm

Shared = Mapping[str, jax.Array]  # from the names after ``shared/`` to arrays


class Node(abc.ABC):
    """The data of one leaf, as a registered dataclass pytree.

    A method is one file with one such class. `jlora.lift`, `jlora.merge`, the optimizer, shardings
    and files know nothing of it beyond what stands here: what a caller must know, the node says.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> node = lora["kernel"]
        >>> isinstance(node, jlora.Node), node.kind, node.shape, node.rank, node.trainable
        (True, 'lora', (7, 5), 2, ('a', 'b'))
    """

    kind: ClassVar[str]  # the name that it is registered under, and known by in files
    trainable: ClassVar[tuple[str, ...]] = ()  # the fields that train
    decayed: ClassVar[tuple[str, ...]] = ()  # those of them that weight decay is meant for
    targeted: ClassVar[bool] = False  # made for the leaves that `LoraConfig.targets` finds
    replaces: ClassVar[bool] = False  # it holds the whole leaf: the frozen one is not looked at
    # the fields that are factors of a delta of its own, A first: LoRA+ raises the others' rates
    factors: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def dimensions(self) -> dict[str, Dims]:
        """For each array field the weight's dimensions that its axes are, or RANK for any other."""

    @abc.abstractmethod
    def adapt(self, weight: Any, shared: Shared) -> Factored | Elementwise | jax.Array:
        """What computes in the weight's place: something of low rank, or a whole array."""

    def input_filter(self, key: jax.Array | None) -> InputFilter | None:
        """What stands between an activation and A in a call with this ``dropout_key``."""
        return None

    @abc.abstractmethod
    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        """The frozen weight back from a merged one.

        Raises:
            ValueError: where the merged weight does not hold it any more.
        """

    @property
    def rank(self) -> int:
        """The rank of the delta; 0 where it has none."""
        return 0

    @property
    def constant_along(self) -> tuple[int, int] | None:
        """A dimension of the weight, and how many neighbours along it get the same change.

        None unless the class says otherwise. What rounds weights in blocks can keep such a change
        whole.
        """
        return None

    def merged(self, weight: jax.Array, shared: Shared = MappingProxyType({})) -> jax.Array:
        """The plain weight for inference, in its own dtype."""
        result = self.adapt(weight, shared)
        return result.merged(weight) if isinstance(result, (Factored, Elementwise)) else result

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
                if dim != RANK:
                    sizes[dim] = size
        return tuple(sizes[dim] for dim in sorted(sizes))

    def misfit(self, shape: tuple[int, ...], shared: Shared = MappingProxyType({})) -> str | None:
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

    def since(self, start: Node) -> Node:
        """What was learned since ``start``, this node at its start, as a delta of its own.

        For starts that took weight out of the frozen tree. Unless the class says otherwise, the
        node itself: its start took none. The rank becomes a whole number of times as large, the
        same for all nodes of a method; the scaling stays.
        """
        return self

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        """This node and others of its kind and leaf as one: the weighted sum of their changes.

        Args:
            others: those of further adapters, if there are any.
            weights: a number for this node, then for each of the others.
            method: as in `jlora.combine`.

        Raises:
            ValueError: when what they change has no such sum; unless the class says otherwise, when
                there are others, or the weight is not 1.
        """
        if others or weights[0] != 1:
            raise ValueError(
                f"{self.kind!r} is no sum: expected it in one adapter alone, of weight 1"
            )
        return self

    def peft_form(self) -> PeftForm | None:
        """What it is in an adapter of the PEFT format; None where that has nothing like it."""
        return None
