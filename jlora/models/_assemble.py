"""Tensors of a file, layer by layer, into the stacked tree of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jlora.models._config import DecoderConfig
from jlora.models._decoder import Decoder


def assemble(
    config: DecoderConfig,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, str], np.ndarray],
    *,
    dtype: Any,
    ignored: Collection[str] = (),
    where: str,
) -> dict[str, Any]:
    """The parameters as a plain nested dict of arrays.

    Each stack is filled in place, one layer at a time: the file's tensors are never all in memory.

    Args:
        config: the decoder's shape.
        names: for each of our paths the tensor's name, with ``{}`` for the layer.
        shapes: the tensors that the file has.
        read: (our path, tensor's name) -> the tensor in the file's orientation.
        dtype: of the result.
        ignored: tensors that may be there and are not needed.
        where: the file, for messages.

    Raises:
        ValueError: naming all tensors that are missing, of another shape, or not expected.
    """
    expected = _expected(config)
    plan: dict[str, list[str]] = {}
    problems: list[str] = []
    for path, shape in expected.items():
        stacked = path.startswith("layers/")
        plan[path] = [names[path].format(k) for k in range(config.layers if stacked else 1)]
        one = shape[1:] if stacked else shape
        want = one[::-1] if path.endswith("/kernel") else one
        for name in plan[path]:
            if name not in shapes:
                problems.append(f"{name} is missing")
            elif tuple(shapes[name]) != want:
                problems.append(f"{name} has shape {tuple(shapes[name])}, expected {want}")
    used = {name for tensors in plan.values() for name in tensors}
    problems += [f"{name} is not expected" for name in shapes if name not in used | set(ignored)]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        listed = "\n  ".join(problems[:8])
        raise ValueError(f"{where} does not fit its own configuration:\n  {listed}{more}")

    params: dict[str, jax.Array] = {}
    for path, tensors in plan.items():
        stack = np.empty((len(tensors), *_per_layer(path, expected[path])), jnp.dtype(dtype))
        for layer, name in enumerate(tensors):
            tensor = read(path, name)
            stack[layer] = tensor.T if path.endswith("/kernel") else tensor
        params[path] = jnp.asarray(stack if path.startswith("layers/") else stack[0])
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _per_layer(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if path.startswith("layers/") else shape


def _expected(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters, by path."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tree = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    flat: dict[str, Any] = dict(flax.traverse_util.flatten_dict(tree, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}
