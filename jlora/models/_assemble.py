"""Tensors of a file, layer by layer, into the stacked tree of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jlora.models._config import DecoderConfig
from jlora.models._decoder import Decoder
from jlora.models._stored import Stored, from_stored, stored_shapes


def assemble(
    config: DecoderConfig,
    leaves: Mapping[str, Stored],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: Any,
    ignored: Collection[str] = (),
    where: str,
) -> dict[str, Any]:
    """The parameters as a plain nested dict of arrays.

    Each stack is filled in place, one layer at a time: the file's tensors are never all in memory.

    Args:
        config: the decoder's shape.
        leaves: for each of our paths, how it lies in the file.
        shapes: the tensors that the file has.
        read: a tensor by its name, in the file's orientation.
        dtype: of the result.
        ignored: tensors that may be there and are not needed.
        where: the file, for messages.

    Raises:
        ValueError: naming all tensors that are missing, of another shape, or not expected.
    """
    expected = expected_shapes(config)
    if unknown := [path for path in expected if path not in leaves]:
        raise ValueError(f"{where}: a {config.family} model has no {', '.join(unknown)}")
    problems: list[str] = []
    used: set[str] = set()
    for path, shape in expected.items():
        for layer in range(config.layers if path.startswith("layers/") else 1):
            one = _per_layer(path, shape)
            fused = leaves[path].name.format(layer) in shapes
            wanted = stored_shapes(leaves[path], layer, one, fused=fused)
            used |= wanted.keys()
            for name, want in wanted.items():
                if name not in shapes:
                    problems.append(f"{name} is missing")
                elif tuple(shapes[name]) != want:
                    problems.append(f"{name} has shape {tuple(shapes[name])}, expected {want}")
    problems += [f"{name} is not expected" for name in shapes if name not in used | set(ignored)]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        listed = "\n  ".join(problems[:8])
        raise ValueError(f"{where} does not fit its own configuration:\n  {listed}{more}")

    tensors = _Read(shapes, read)
    params: dict[str, jax.Array] = {}
    for path, shape in expected.items():
        one = _per_layer(path, shape)
        stacked = path.startswith("layers/")
        stack = np.empty((config.layers if stacked else 1, *one), jnp.dtype(dtype))
        for layer in range(len(stack)):
            stack[layer] = from_stored(leaves[path], layer, one, tensors)
        params[path] = jnp.asarray(stack if stacked else stack[0])
    return flax.traverse_util.unflatten_dict(params, sep="/")


class _Read(Mapping[str, np.ndarray]):
    """A file's tensors, each read when it is asked for."""

    def __init__(self, names: Collection[str], read: Callable[[str], np.ndarray]):
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _per_layer(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if path.startswith("layers/") else shape


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, by path."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(tree, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}
