"""How products and sums lie on devices; a mesh whose axes are explicit wants to be told."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec


def einsum(
    x: Any,
    x_labels: Sequence[int],
    y: Any,
    y_labels: Sequence[int],
    out: Sequence[int],
    **options: Any,
) -> jax.Array:
    """`jnp.einsum` of two arrays, laid out as `out_sharding` says."""
    where = out_sharding(x, x_labels, y, y_labels, out)
    return jnp.einsum(
        x, list(x_labels), y, list(y_labels), list(out), out_sharding=where, **options
    )


def out_sharding(
    x: Any, x_labels: Sequence[int], y: Any, y_labels: Sequence[int], out: Sequence[int]
) -> Any:
    """How a product lies on a mesh of explicit axes: each dimension as in the operand that has it.

    None where no operand says anything (automatic axes, one device).
    """
    named: dict[int, Any] = {}
    mesh = None
    for array, labels in ((x, x_labels), (y, y_labels)):
        sharding = jax.typeof(array).sharding
        if any(entry is not None for entry in sharding.spec):
            mesh = sharding.mesh
        for label, entry in zip(labels, sharding.spec, strict=True):
            named[label] = named.get(label) if entry is None else entry
    if mesh is None:
        return None
    entries, taken = [], set()
    for label in out:
        entry = named.get(label)
        axes = set(axes_of(entry))
        entries.append(None if axes & taken else entry)
        taken |= axes
    return NamedSharding(mesh, PartitionSpec(*entries))


def on_one_device(*arrays: Any) -> bool:
    """Whether none of them can lie on several devices, so that joining dimensions costs nothing.

    Where a mesh's axes are automatic, arrays do not say: the count of devices decides, for which
    JAX starts its backend.
    """
    return all(jax.typeof(a).sharding.mesh.empty for a in arrays) and jax.device_count() == 1


def like(array: Any, other: Any) -> Any:
    """The array, laid out as another that it meets elementwise, on a mesh of explicit axes.

    Its dimensions of size 1, which repeat along the other's, are whole everywhere.
    """
    if not (_divided(array) or _divided(other)):
        return array
    want = jax.typeof(other).sharding
    sizes = zip(array.shape, other.shape, want.spec, strict=True)
    return _laid_out(array, want.mesh, [entry if size == n else None for size, n, entry in sizes])


@contextlib.contextmanager
def mesh_of(array: Any) -> Iterator[None]:
    """Compute where the array says that it lies, whatever part of the model comes next."""
    mesh = jax.typeof(array).sharding.mesh if isinstance(array, jax.Array) else None
    if mesh is None or mesh.empty or mesh == jax.sharding.get_abstract_mesh():
        yield
    else:
        with jax.sharding.use_abstract_mesh(mesh):
            yield


def whole(array: Any) -> Any:
    """The array with every dimension whole on every device: what decomposes has to see it all."""
    return _laid_out(array, jax.typeof(array).sharding.mesh, ()) if _divided(array) else array


def layout_of(spec: Any, dims: Sequence[int]) -> list[Any]:
    """The layout of an array over some dimensions of a weight that lies as ``spec`` says.

    Whole on those that the weight has not, such as the rank.
    """
    named = dict(enumerate(spec))
    return [named.get(dim) for dim in dims]


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def on(array: Any, mesh: Any) -> Any:
    """The array whole on every device of a mesh, on which it may already be."""
    sharding = jax.typeof(array).sharding
    return array if sharding.mesh == mesh else spread(array, mesh, [])


def spread(array: Any, mesh: Any, entries: Sequence[Any]) -> Any:
    """The array on a mesh, its dimensions along these axes, or whole where they don't fit."""
    sizes = dict(mesh.shape)
    fitting = [
        entry if size % math.prod(sizes[axis] for axis in axes_of(entry)) == 0 else None
        for size, entry in zip(array.shape, entries, strict=False)
    ]
    return _laid_out(array, mesh, fitting)


def following(array: Any, labels: Sequence[int], result: Any, result_labels: Sequence[int]) -> Any:
    """A product's operand, whole dimensions of it divided as the result's that they become.

    So the product lies as its result, and its gradient too: a small operand that lies whole is cut,
    where otherwise the result's gradient would be gathered.
    """
    if not _divided(result):
        return array
    sharding, wanted = jax.typeof(array).sharding, jax.typeof(result).sharding
    named = dict(zip(result_labels, wanted.spec, strict=True))
    used = {axis for entry in sharding.spec for axis in axes_of(entry)}
    entries = []
    for label, have in zip(labels, sharding.spec, strict=True):
        new = axes_of(named.get(label))
        entries.append(have if have is not None or used & set(new) else named.get(label))
        used |= set(axes_of(entries[-1]))
    return spread(array, wanted.mesh, entries)


def divide(array: Any, mesh: Any, entries: Sequence[Any], manual: frozenset[str]) -> Any:
    """The array with its dimensions divided over these of the ``manual`` axes and no others.

    Where arrays of the mesh say how they lie (explicit axes); its other axes stay as they are.
    """
    sharding = jax.typeof(array).sharding
    mesh = mesh if sharding.mesh.empty else sharding.mesh
    explicit = set(mesh.axis_names) - set(mesh.auto_axes) - set(mesh.manual_axes)
    if not explicit & manual:
        return array
    wanted = []
    for have, named in zip(sharding.spec, entries, strict=True):
        kept = [axis for axis in axes_of(have) if axis not in manual]
        new = [axis for axis in axes_of(named) if axis in explicit]
        wanted.append(tuple(dict.fromkeys((*kept, *new))) or None)
    return _laid_out(array, mesh, wanted)


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """In a `jax.shard_map`: the arrays, each told to differ along all axes along which one does.

    JAX does so for its own operations; a function with a gradient of its own has to.
    """
    axes = frozenset[str]().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))

    def told(array: jax.Array) -> jax.Array:
        new = tuple(axes - jax.typeof(array).manual_axis_type.varying)
        return jax.lax.pcast(array, new, to="varying") if new else array

    return list(map(told, arrays))


def _divided(array: Any) -> bool:
    """Whether its type says that it is divided, which explicit axes alone do."""
    return any(entry is not None for entry in jax.typeof(array).sharding.spec)


def _laid_out(array: Any, mesh: Any, entries: Sequence[Any]) -> Any:
    """The array as these entries say, if it does not lie so already."""
    to = NamedSharding(mesh, PartitionSpec(*entries))
    return array if jax.typeof(array).sharding == to else jax.sharding.reshard(array, to)


def entries(array: Any, index: tuple[Any, ...]) -> Any:
    """``array[index]`` for an array of any kind, wherever it lies; whole on every device.

    Where it lies over several processes, all of them ask for it.
    """
    if _divided(array):
        everywhere = NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec())
        return array.at[index].get(out_sharding=everywhere)
    if isinstance(array, jax.Array) and not traced(array) and not array.is_fully_addressable:
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())  # type: ignore
        return jax.jit(_taken, out_shardings=everywhere)(array, index)
    return array[index]


def _taken(array: jax.Array, index: tuple[Any, ...]) -> jax.Array:
    return array[index]


def traced(array: Any) -> bool:
    """Whether it stands for an array that a transformation (`jax.jit`) will give."""
    return isinstance(array, Tracer)


def in_place_of(leaf: Any, array: Any) -> Any:
    """The array where the leaf that it replaces lies; automatic axes are left to the compiler."""
    if not isinstance(leaf, jax.Array):
        return array
    if traced(leaf) or traced(array):
        return like(array, leaf)
    on_a_mesh = isinstance(leaf.sharding, NamedSharding)
    return jax.device_put(array, leaf.sharding) if on_a_mesh else array


def on_mesh_of(tree: Any, leaf: Any) -> Any:
    """The tree's arrays on the devices of ``leaf``, where it lies on several and they on others.

    Whole on each; traced arrays, and those that lie there, as they are.
    """
    place = getattr(leaf, "sharding", None)
    if traced(leaf) or not isinstance(place, NamedSharding):
        return tree

    def moved(array: Any) -> Any:
        if (
            not isinstance(array, jax.Array)
            or traced(array)
            or array.sharding.device_set == place.device_set
        ):
            return array
        return placed(array, NamedSharding(place.mesh, PartitionSpec()))

    return jax.tree.map(moved, tree)


def placed(array: Any, sharding: NamedSharding | None) -> jax.Array:
    """The array as the sharding says; on a mesh of several processes each has the whole of it."""
    if sharding is None or traced(array) or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = placed(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
