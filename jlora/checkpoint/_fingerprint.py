"""Which base an adapter belongs to: each leaf's shape, dtype and a hash of a few of its values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _placement

Fingerprint = dict[str, dict[str, Any]]

_SAMPLES = 64  # values of each leaf that are hashed, evenly spread


def fingerprint(tree: Any) -> Fingerprint:
    """For each leaf by its path: ``shape``, ``dtype`` and ``values``, a hash of a sample of them.

    Cheap on any device: 64 values of each leaf are read. ``values`` is None where there are none to
    read: ShapeDtypeStructs, random keys, and arrays that this process does not hold whole. What is
    no array (a function, a number of Python) is not in it.

    Args:
        tree: any pytree of arrays.

    Raises:
        ValueError: when two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> told = jlora.checkpoint.fingerprint({"kernel": jnp.ones((7, 5))})["kernel"]
        >>> told["shape"], told["dtype"], len(told["values"])
        ([7, 5], 'float32', 16)
    """
    leaves, _ = _paths.arrays(tree)
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "values": _hash(leaf)}
        for path, leaf in leaves.items()
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)
    }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each leaf in which two fingerprints differ, none if they agree.

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
        elif None not in (values := (expected[path]["values"], found[path]["values"])) and (
            values[0] != values[1]
        ):
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
        shape, dtype, values = (
            (leaf.get(name) for name in ("shape", "dtype", "values"))
            if isinstance(leaf, Mapping)
            else (None, None, None)
        )
        whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        if not (whole and _is_dtype(dtype) and isinstance(values, str | None)):
            raise ValueError(f"{where} is damaged: the base's fingerprint of {path} is {leaf!r}")
    return dict(value)


def _is_dtype(name: Any) -> bool:
    try:
        return isinstance(name, str) and jnp.dtype(name) is not None
    except TypeError:
        return name.startswith("key<")  # random keys, whose types NumPy does not know


class Sample:
    """The values of one leaf that its fingerprint hashes, gathered from parts as they come by.

    Args:
        shape: of the leaf.
        dtype: of the leaf.

    Example:
        >>> import numpy as np
        >>> from jlora import checkpoint
        >>> stack = np.random.default_rng(0).normal(size=(3, 7, 5))
        >>> sample = checkpoint.Sample(stack.shape, stack.dtype)
        >>> for layer in range(3):
        ...     sample.see(stack[layer], (layer,))
        >>> sample.digest == checkpoint.fingerprint({"kernel": stack})["kernel"]["values"]
        True
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self._shape = shape
        self._at = _sampled(math.prod(shape))
        self._values = np.zeros(len(self._at), np.dtype(dtype))
        self._seen = np.zeros(len(self._at), bool)

    def see(self, part: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """Takes from ``part``, which is ``leaf[index]``, what is needed of it."""
        first = int(np.ravel_multi_index(index, self._shape[: len(index)])) if index else 0
        inside = self._at - first * part.size
        here = (inside >= 0) & (inside < part.size)
        values = part[np.unravel_index(inside[here], part.shape)] if part.shape else part
        self._values[here] = values
        self._seen |= here

    @property
    def digest(self) -> str | None:
        """The fingerprint's ``values``, once every part was seen; None before."""
        return _digest(self._values) if self._seen.all() else None


def _say(leaf: Mapping[str, Any]) -> str:
    return f"{leaf['dtype']}{tuple(leaf['shape'])}"


def _hash(leaf: Any) -> str | None:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # such as keys: no numbers of NumPy's
        return None
    flat = _sampled(math.prod(leaf.shape))
    at = np.unravel_index(flat, leaf.shape)
    return _digest(_placement.entries(leaf, at) if leaf.shape else leaf)


def _sampled(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64)


def _digest(values: Any) -> str:
    return hashlib.sha256(np.asarray(values).tobytes()).hexdigest()[:16]
