"""How products and sums lie on devices; a mesh whose axes are explicit wants to be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax


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
        axes = set(entry if isinstance(entry, tuple) else (entry,)) - {None}
        entries.append(None if axes & taken else entry)
        taken |= axes
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*entries))


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
    have, want = jax.typeof(array).sharding, jax.typeof(other).sharding
    if array.shape != other.shape:
        sizes = zip(array.shape, other.shape, want.spec, strict=True)
        entries = [entry if size == full else None for size, full, entry in sizes]
        want = jax.sharding.NamedSharding(want.mesh, jax.sharding.PartitionSpec(*entries))
    if have == want or all(entry is None for entry in (*have.spec, *want.spec)):
        return array
    return jax.sharding.reshard(array, want)
