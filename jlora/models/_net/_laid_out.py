"""Where activations lie on a mesh, told by what their dimensions are; nothing without a layout.

A net names dimensions, `jlora.models.Layout` says which axes of its mesh they go along. Left alone,
a compiler cuts activations along their width, or gathers them where it should gather weights.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

ROWS = "rows"  # of a batch
MODEL = "model"  # heads, the width inside an MLP, the vocabulary
# As the table of embeddings is cut, from which rows are looked up before they go their ways.
REPLICAS, WIDTH = "replicas", "width"
ANY = "any"  # however it comes

Axes = Mapping[str | None, tuple[str, ...]]  # of the mesh, by name of a dimension
_known: contextvars.ContextVar[tuple[Any, Axes] | None]
_known = contextvars.ContextVar("jlora_laid_out_on", default=None)


@contextlib.contextmanager
def laid_out_on(mesh: Any, axes: Axes) -> Iterator[None]:
    """In the block `laid_out` knows a mesh, and along which of its axes each name goes."""
    token = _known.set((mesh, axes))
    try:
        yield
    finally:
        _known.reset(token)


def laid_out(x: jax.Array, *names: str | None) -> jax.Array:
    """The array with each dimension along the axes of its name; whole where they do not divide it.

    Args:
        x: any array.
        names: one for each dimension; None: whole.
    """
    if (known := _known.get()) is None:
        return x
    mesh, axes = known
    entries = [
        PartitionSpec.UNCONSTRAINED if name == ANY else fitting(size, axes.get(name, ()), mesh)
        for size, name in zip(x.shape, names, strict=True)
    ]
    return constrained(x, mesh, entries)


def constrained(x: jax.Array, mesh: Any, entries: Sequence[Any]) -> jax.Array:
    """The array with its dimensions along these axes of the mesh."""
    spec = PartitionSpec(*entries)
    in_context = jax.sharding.get_abstract_mesh().axis_names == mesh.axis_names
    return jax.lax.with_sharding_constraint(x, spec if in_context else NamedSharding(mesh, spec))


def rows_laid_out(x: jax.Array, last: str | None = None) -> jax.Array:
    """(rows, ..., features) with its rows cut, the features whole or along the axes of a name."""
    return laid_out(x, ROWS, *[None] * (x.ndim - 2), last)


def by_rows(fn: Callable[..., jax.Array], of_rows: Sequence[jax.Array], weights: Any) -> jax.Array:
    """``fn(*of_rows, weights)``, on each device of its own rows alone.

    For what looks at all rows at once, such as sorting them. Weights are whole there along the axes
    of rows.

    Args:
        fn: gives an array with the rows first.
        of_rows: arrays with the rows first.
        weights: any tree.
    """
    if (known := _known.get()) is None:
        return fn(*of_rows, weights)
    mesh, axes = known
    rows = axes.get(ROWS, ())
    if not rows or fitting(len(of_rows[0]), rows, mesh) != rows:
        return fn(*of_rows, weights)
    in_context = jax.sharding.get_abstract_mesh().axis_names == mesh.axis_names
    cut = PartitionSpec(rows)
    return jax.shard_map(
        fn,
        mesh=None if in_context else mesh,
        in_specs=(*[cut] * len(of_rows), PartitionSpec()),
        out_specs=cut,
        axis_names=set(rows),
    )(*of_rows, weights)


def fitting(size: int, axes: tuple[str, ...], mesh: Any) -> tuple[str, ...] | None:
    """The first of the axes, as many as divide the size together."""
    for count in range(len(axes), 0, -1):
        if size % math.prod(mesh.shape[axis] for axis in axes[:count]) == 0:
            return axes[:count]
    return None


def automatic(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, a function of trees of arrays, on a mesh of any axes: in it they are automatic.

    Results, whose rows are first, lie by rows where the axes are explicit.
    """

    def on_any_axes(*args: Any) -> Any:
        mesh = _explicit(args)
        if mesh is None:
            return fn(*args)
        run = lambda out: jax.sharding.auto_axes(fn, out_sharding=out)(*args)  # noqa: E731
        _, axes = _known.get() or (None, {})

        def of_rows(like: jax.ShapeDtypeStruct) -> PartitionSpec:
            if like.ndim < 2:
                return PartitionSpec()
            return PartitionSpec(fitting(like.shape[0], axes.get(ROWS, ()), mesh))

        with jax.sharding.use_abstract_mesh(mesh):
            return run(jax.tree.map(of_rows, jax.eval_shape(lambda: run(PartitionSpec()))))

    return on_any_axes


def _explicit(args: Any) -> Any:
    """The mesh with explicit axes that one of the arrays is on, or that of `jax.set_mesh`."""
    on = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args)]
    found = [mesh for mesh in (jax.sharding.get_abstract_mesh(), *on) if not mesh.empty]
    return next((mesh for mesh in found if AxisType.Explicit in mesh.axis_types), None)
