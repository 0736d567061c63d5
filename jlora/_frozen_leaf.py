"""What may stand in the frozen tree for a weight and is no array: a weight that is kept small."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jlora import _placement
from jlora._lowrank import Dims


class FrozenLeaf(abc.ABC):
    """A registered dataclass pytree that stands where a frozen weight stood.

    `jlora.split`, `jlora.lift`, `jlora.merge` and all others take a tree with such leaves in the
    place of a plain one. Where a model only moves the weight about (transposes, layers of a stack
    in a scan, slices of what is `separable`), the stored arrays move; where it multiplies with it,
    `multiply` does; everything else gets `plain`.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Half(jlora.extend.FrozenLeaf):
        ...     kept: jax.Array  # float16
        ...     dtype = jnp.dtype("float32")
        ...     shape = property(lambda self: self.kept.shape)
        ...     def dimensions(self):
        ...         return {"kept": (0, 1)}
        ...     def plain(self):
        ...         return self.kept.astype(self.dtype)
        >>> params = {"kernel": Half(jnp.ones((7, 5), jnp.float16))}
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split(params, config, jax.random.key(0))
        >>> jlora.lift(lambda params, x: x @ params["kernel"])(frozen, lora, jnp.ones((3, 7))).shape
        (3, 5)
    """

    shape: Any  # of the weight that it stands for
    dtype: Any

    @abc.abstractmethod
    def dimensions(self) -> dict[str, Dims]:
        """For each array field the weight's dimensions that its axes are, or RANK for any other."""

    @abc.abstractmethod
    def plain(self) -> jax.Array:
        """The weight, in its shape and dtype."""

    def multiply(
        self, product: Callable[..., jax.Array], *operands: Any, kept: tuple[int | None, ...]
    ) -> jax.Array:
        """``product(W, *operands)``; what it makes is not kept for the gradient, but made again.

        Args:
            product: of an array in W's place, in any floating dtype, and the operands.
            *operands: what it is multiplied with.
            kept: for each dimension of the result which of W's dimensions it is, or None. A scale
                along such dimensions alone may multiply the result in place of W; of size 1, as in
                a step of a scan, a dimension need not be there.
        """
        return product(self.plain(), *operands)

    @property
    def separable(self) -> tuple[int, ...]:
        """The dimensions along which any part can be taken of the stored arrays alone.

        Those that are an axis of every array field, unless the class says otherwise; an array that
        says the same along a dimension need not have it.
        """
        fields = list(self.dimensions().values())
        return tuple(dim for dim in range(len(self.shape)) if all(dim in field for field in fields))

    def for_rows(self, dim: int) -> FrozenLeaf:
        """A leaf of the same weight whose `separable` has this dimension, before a lookup along it.

        Itself, unless the class knows another one that takes little to make.
        """
        return self

    @property
    def nbytes(self) -> int:
        """The bytes of the stored arrays."""
        return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(self))

    @property
    def exact(self) -> bool:
        """Whether `plain` gives the same bits on every device, so that they tell which it is.

        Where numbers are decoded by one product or by sums that are not rounded, they are.
        """
        return True

    def with_arrays(self, arrays: Mapping[str, Any], shape: tuple[int, ...]) -> FrozenLeaf:
        """The leaf of a part of the weight, of this shape, with these arrays."""
        changed = dict(arrays)
        if "shape" in {field.name for field in dataclasses.fields(self)}:  # type: ignore
            changed["shape"] = shape
        return dataclasses.replace(self, **changed)  # type: ignore


def is_frozen_leaf(value: Any) -> bool:
    """Whether a tree ends here, though a pytree goes on."""
    return isinstance(value, FrozenLeaf)


def has_frozen_leaf(tree: Any) -> bool:
    """Whether some weight of a tree is kept otherwise than as an array."""
    return any(map(is_frozen_leaf, jax.tree.leaves(tree, is_leaf=is_frozen_leaf)))


def plain(leaf: Any) -> Any:
    """The array that a leaf stands for; an array as it is."""
    return leaf.plain() if isinstance(leaf, FrozenLeaf) else leaf


@jax.jit
def decoded(leaf: FrozenLeaf) -> jax.Array:
    """The plain array, compiled once for all leaves that are alike."""
    return leaf.plain()


def replaced(leaf: Any, of: Callable[..., jax.Array], *operands: Any) -> jax.Array:
    """``of(W, *operands)`` for the weight W that a leaf stands for: where W lies, as it lies."""
    weight = plain(leaf)
    operands = _placement.on_mesh_of(operands, weight)
    return _placement.in_place_of(weight, of(weight, *operands))
