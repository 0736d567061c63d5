"""A frozen leaf that is no array on its way through the walk: its stored arrays move with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jlora._frozen_leaf import FrozenLeaf
from jlora._lift._base import Base
from jlora._lift._decline import Decline
from jlora._lift._movement import Movement, unmoved
from jlora._lowrank import RANK, Factor
from jlora._stored_order import as_stored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenBase(Base):
    """The leaf, and which of its dimensions each dimension here is.

    A dimension of the leaf that is none here has size 1, and so has one here that is none of the
    leaf's.
    """

    stored: FrozenLeaf
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # the leaf's shape
    dims: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    origin: str = dataclasses.field(metadata={"static": True})
    # axes of size 1 that the arrays of a scan's step lack: they are put back where they are used,
    # so that what is kept for the gradient is the scanned array itself
    lacking: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata={"static": True})

    decodes: ClassVar[bool] = True

    @classmethod
    def from_leaf(cls, leaf: FrozenLeaf, origin: str) -> FrozenBase:
        """The leaf as it stands in the tree."""
        sizes = tuple(leaf.shape)
        return cls(leaf, sizes, tuple(range(len(sizes))), jnp.dtype(leaf.dtype), origin)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore
        return tuple(1 if dim is None else self.sizes[dim] for dim in self.dims)

    @property
    def leaf(self) -> FrozenLeaf:
        """The leaf with all axes of its arrays."""
        return _completed(self.stored, self.sizes, self.lacking)

    def astype(self, dtype: Any) -> FrozenBase:
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def renamed(self, origin: str) -> FrozenBase:
        return dataclasses.replace(self, origin=origin)

    def plain(self) -> jax.Array:
        return self._here(_completed(as_stored(self.stored), self.sizes, self.lacking).plain())

    def multiply(
        self, product: Callable[..., Any], *operands: Any, kept: tuple[int | None, ...]
    ) -> Any:
        def multiply(stored, *rest):
            leaf = _completed(as_stored(stored), self.sizes, self.lacking)
            return leaf.multiply(here, *rest, kept=own)

        def here(w, *rest):
            return product(self._here(w), *rest)

        own = tuple(None if dim is None else self.dims[dim] for dim in kept)
        return jax.checkpoint(multiply)(self.stored, *operands)  # nothing decoded is kept

    def _here(self, array: jax.Array) -> jax.Array:
        """An array in the leaf's dimensions, in those here."""
        have = [dim for dim in range(array.ndim) if dim in self.dims]
        array = lax.squeeze(array, [dim for dim in range(array.ndim) if dim not in self.dims])
        order = [have.index(dim) for dim in self.dims if dim is not None]
        array = lax.transpose(array, order)
        new = [at for at, dim in enumerate(self.dims) if dim is None]
        return jnp.expand_dims(array, new).astype(self.dtype)

    def move(self, movement: Movement, factor: Callable[[Factor], Factor]) -> FrozenBase:
        dims: list[int | None] = []
        for sources in movement.sources:
            wide = [dim for dim in sources if self.shape[dim] != 1] or list(sources[:1])
            if len(wide) > 1 or movement.spread:
                raise Decline("a frozen leaf that is no array can't be reshaped or repeated")
            dims.append(self.dims[wide[0]] if wide else None)
        if len({dim for dim in dims if dim is not None}) < sum(dim is not None for dim in dims):
            raise Decline("a frozen leaf that is no array can't be taken apart so")
        moved = dataclasses.replace(self, dims=tuple(dims))
        if movement.placed:
            return moved._with(lambda stored: factor(self._on_dims_here(stored)))
        if not movement.parted | movement.summed:
            return moved
        parted = {self.dims[dim] for dim in movement.parted | movement.summed}
        if movement.summed or not parted <= {None, *self.leaf.separable}:
            raise Decline("the stored arrays of a frozen leaf can't be taken apart there")
        return moved._with(lambda stored: factor(self._on_dims_here(stored)))

    def _on_dims_here(self, stored: Factor) -> Factor:
        """A stored array with this value's dimensions; what is none of them is called RANK."""
        here = {dim: at for at, dim in enumerate(self.dims) if dim is not None}
        return Factor(stored.array, tuple(here.get(dim, RANK) for dim in stored.dims))

    def _with(self, change: Callable[[Factor], Factor]) -> FrozenBase:
        """With stored arrays that ``change`` gives on this value's dimensions."""
        arrays, sizes, leaf = {}, {}, self.leaf
        for name, dims in leaf.dimensions().items():
            new = change(Factor(getattr(leaf, name), dims))
            others = [axis for axis, dim in enumerate(new.dims) if dim == RANK]
            order: list[int] = []
            gone: list[int] = []
            for axis, dim in enumerate(dims):
                if dim == RANK or dim not in self.dims:
                    order.append(others.pop(0)) if others else gone.append(axis)
                elif self.dims.index(dim) in new.dims:
                    order.append(new.dims.index(self.dims.index(dim)))
                else:
                    gone.append(axis)
            array = jnp.expand_dims(lax.transpose(new.array, order), gone)
            arrays[name] = array
            sizes |= {dim: n for dim, n in zip(dims, array.shape, strict=True) if dim != RANK}
        shape = tuple(sizes.get(dim, size) for dim, size in enumerate(self.sizes))
        stored = leaf.with_arrays(arrays, shape)
        return dataclasses.replace(self, stored=stored, sizes=shape, lacking=())

    def rows(self, dim: int, choose: Callable[[Any, int], Any]) -> jax.Array:
        """The plain array of places along a dimension: ``choose(stored array, axis)`` of each."""

        def part(stored: Factor) -> Factor:
            if dim not in stored.dims:
                return stored
            return Factor(choose(stored.array, stored.dims.index(dim)), stored.dims)

        its = self.dims[dim]
        leaf = self.leaf if its is None else self.leaf.for_rows(its)
        base = dataclasses.replace(self, stored=leaf, lacking=())
        return base.move(unmoved(len(self.dims), parted=frozenset([dim])), part).plain()

    def steps(self, movement: Movement) -> tuple[Any, Callable[[Any], Base]]:
        first, leaf = self.dims[0], self.leaf
        if first is None or first not in leaf.separable:
            raise Decline("the layers of a frozen leaf can't be taken apart")
        fields = {n: d.index(first) for n, d in leaf.dimensions().items() if first in d}
        scanned = {n: jnp.moveaxis(getattr(leaf, n), axis, 0) for n, axis in fields.items()}
        shape = tuple(1 if dim == first else n for dim, n in enumerate(self.sizes))

        def one(part: Any) -> FrozenBase:
            return dataclasses.replace(
                self,
                stored=leaf.with_arrays(part, shape),
                sizes=shape,
                dims=self.dims[1:],
                lacking=tuple(fields.items()),
            )

        return scanned, one


def _completed(
    stored: FrozenLeaf, shape: tuple[int, ...], lacking: tuple[tuple[str, int], ...]
) -> FrozenLeaf:
    """The leaf with the axes of size 1 that its arrays lack."""
    if not lacking:
        return stored
    arrays = {name: jnp.expand_dims(getattr(stored, name), axis) for name, axis in lacking}
    return stored.with_arrays(arrays, shape)
