"""Which base an adapter belongs to: each leaf's shape, dtype and a sum over all of its values."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _placement, _together
from jlora._frozen_leaf import FrozenLeaf, decoded
from jlora.checkpoint import _position_sums

Fingerprint = dict[str, dict[str, Any]]

_SAMPLES = 64  # values of each leaf that are hashed, evenly spread: all that version 3 knows
_AT_ONCE = 2**24  # values that are decoded, or one layer if that has more
_OF_VALUES = ("values", "sum")


def fingerprint(tree: Any) -> Fingerprint:
    """For each leaf by its path: ``shape``, ``dtype``, ``sum`` of all values, ``values`` of a few.

    ``sum`` tells when a single value changed, or two changed places. It is computed where the
    shards lie, each value read once and none moved, and is the same on every mesh. ``values`` is a
    hash of 64 of them, which is all that earlier versions wrote. Both are None where there are none
    to read: ShapeDtypeStructs, random keys, and arrays that lie with other processes alone. What is
    no array (a function, a number of Python) is not in it. A weight that is kept small counts as
    the plain one that it stands for, a layer at a time; where its bits depend on the device that
    decodes it (``nf4``, ``int8``), its values are not said.

    Where arrays lie over all processes of a run, all of them call it, and all are told the same.

    Args:
        tree: any pytree of arrays.

    Raises:
        ValueError: when two leaves have the same path, or the processes have other leaves.
        TimeoutError: when processes do not come here: those that are absent are named.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> told = jlora.checkpoint.fingerprint({"kernel": jnp.ones((7, 5))})["kernel"]
        >>> told["shape"], told["dtype"], len(told["sum"]), len(told["values"])
        ([7, 5], 'float32', 16, 16)
    """
    leaves, _ = _paths.flatten(tree)
    leaves = {
        path: leaf
        for path, leaf in leaves.items()
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)
    }
    _agree({path: leaf for path, leaf in leaves.items() if _is_of_all(leaf)})
    hashes, sums = {}, {}
    for path, leaf in leaves.items():
        hashes[path], sums[path] = _of_values(leaf)
    sums |= _whole({path: sums[path] for path, leaf in leaves.items() if _is_of_all(leaf)})
    return {
        path: entry(leaf.shape, leaf.dtype, hashes[path], sums[path])
        for path, leaf in leaves.items()
    }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each leaf in which two fingerprints differ, none if they agree.

    What one of the two does not say, as those of earlier versions no ``sum``, is not compared.

    Args:
        expected: from `fingerprint`.
        found: from `fingerprint`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora import checkpoint
        >>> one = checkpoint.fingerprint({"kernel": jnp.ones((7, 5))})
        >>> other = checkpoint.fingerprint({"kernel": jnp.zeros((7, 5))})
        >>> checkpoint.differences(one, one), checkpoint.differences(one, other)
        ([], ['kernel: the shape agrees, the values are others'])
    """
    lines = []
    for path in expected:
        if path not in found:
            lines.append(f"{path}: expected {_say(expected[path])}, but there is no such leaf")
        elif _say(expected[path]) != _say(found[path]):
            lines.append(f"{path}: expected {_say(expected[path])}, got {_say(found[path])}")
        elif any(_differs(expected[path], found[path], name) for name in _OF_VALUES):
            lines.append(f"{path}: the shape agrees, the values are others")
    lines += [
        f"{path}: not expected, got {_say(found[path])}" for path in sorted(found.keys() - expected)
    ]
    return lines


def checked(value: Any, where: str) -> Fingerprint | None:
    """What a file says that a base's fingerprint is, once it has the form of one.

    Args:
        value: out of the file.
        where: the file, for the message.

    Raises:
        ValueError: when it is none, with the entry that is the reason.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is damaged: the base's fingerprint is no object")
    for path, leaf in value.items():
        if not isinstance(leaf, Mapping) or not _is_entry(leaf):
            raise ValueError(f"{where} is damaged: the base's fingerprint of {path} is {leaf!r}")
    return dict(value)


def _is_entry(leaf: Mapping[str, Any]) -> bool:
    shape = leaf.get("shape")
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    of_values = all(isinstance(leaf.get(name), str | None) for name in _OF_VALUES)
    return whole and _is_dtype(leaf.get("dtype")) and of_values


def _is_dtype(name: Any) -> bool:
    try:
        return isinstance(name, str) and jnp.dtype(name) is not None
    except TypeError:
        return name.startswith("key<")  # random keys, whose types NumPy does not know


def _say(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']}{tuple(leaf['shape'])}"


def _differs(expected: Mapping[str, Any], found: Mapping[str, Any], name: str) -> bool:
    both = expected.get(name), found.get(name)
    return None not in both and both[0] != both[1]


def entry(
    shape: tuple[int, ...], dtype: Any, values: str | None, sums: _position_sums.Sums | None
) -> dict[str, Any]:
    """What a fingerprint says of one leaf."""
    of_all = None if sums is None else "".join(f"{each:08x}" for each in sums)
    return {"shape": list(shape), "dtype": str(dtype), "values": values, "sum": of_all}


def _of_values(leaf: Any) -> tuple[str | None, _position_sums.Sums | None]:
    """The hash of a sample of a leaf's values, and the sums of all that this process holds."""
    if isinstance(leaf, FrozenLeaf):
        return _of_small(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return None, None
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or _is_of_all(leaf)):
        return None, None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # such as keys: no numbers of NumPy's
        return None, None
    few = leaf
    if leaf.shape:
        at = np.unravel_index(sampled(math.prod(leaf.shape)), leaf.shape)
        few = _placement.entries(leaf, at)
    return digest_of_sample(few), _position_sums.of_array(leaf)


def _of_small(leaf: FrozenLeaf) -> tuple[str | None, _position_sums.Sums | None]:
    """Those of the array that it stands for, of which some entries are there at a time."""
    arrays = jax.tree.leaves(leaf)
    its_own = all(isinstance(each, jax.Array) and each.is_fully_addressable for each in arrays)
    if not (leaf.exact and (its_own or _is_of_all(leaf))):
        return None, None
    places = np.unravel_index(sampled(math.prod(leaf.shape)), leaf.shape)
    if 0 not in leaf.separable:
        whole = decoded(leaf)
        return digest_of_sample(_placement.entries(whole, places)), _position_sums.of_array(whole)
    few, sums = np.zeros(len(places[0]), leaf.dtype), (0, 0)
    count = leaf.shape[0]
    at_once = max(1, _AT_ONCE * count // max(math.prod(leaf.shape), 1))
    for first in range(0, count, at_once):
        part = _entries(leaf, first, min(at_once, count - first))
        starts = (first, *(0,) * (part.ndim - 1))
        sums = _position_sums.added(sums, _position_sums.of_array(part, starts))
        inside = (places[0] >= first) & (places[0] < first + at_once)
        if inside.any():
            rows, *others = (place[inside] for place in places)
            few[inside] = np.asarray(_placement.entries(part, (rows - first, *others)))
    return digest_of_sample(few), sums


def _is_of_all(leaf: Any) -> bool:
    """Whether each process of a run holds a part of it, or a copy."""
    arrays = jax.tree.leaves(leaf)
    return _together.count() > 1 and all(
        isinstance(array, jax.Array)
        and len({device.process_index for device in array.sharding.device_set}) == _together.count()
        for array in arrays
    )


def _agree(leaves: Mapping[str, Any]) -> None:
    """Raises unless all processes have these; later each waits for the others at every one."""
    if leaves:
        shapes = {path: f"{leaf.dtype}{tuple(leaf.shape)}" for path, leaf in leaves.items()}
        _together.agreed("the leaves of the base", shapes)


def _whole(parts: dict[str, _position_sums.Sums | None]) -> dict[str, _position_sums.Sums | None]:
    """The sums of leaves, of those that each process has for what it holds of them."""
    if not parts:
        return parts
    told = map(json.loads, _together.exchange("the sums of the base", json.dumps(parts)))
    return functools.reduce(_added, told)


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {path: sums and _position_sums.added(sums, other[path]) for path, sums in one.items()}


@functools.partial(jax.jit, static_argnums=2)
def _entries(leaf: FrozenLeaf, first: jax.Array | int, count: int) -> jax.Array:
    """(count, ...): so many entries along the first dimension."""
    parts = {
        name: jax.lax.dynamic_slice_in_dim(getattr(leaf, name), first, count, dims.index(0))
        for name, dims in leaf.dimensions().items()
        if 0 in dims
    }
    return leaf.with_arrays(parts, (count, *leaf.shape[1:])).plain()


def sampled(size: int) -> np.ndarray:
    """Where in a flat array the values stand that are hashed, evenly spread."""
    return np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64)


def digest_of_sample(values: Any) -> str:
    """Their hash."""
    return hashlib.sha256(np.asarray(values).tobytes()).hexdigest()[:16]
