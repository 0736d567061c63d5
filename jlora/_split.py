"""The pytree transform: parameters into a frozen tree and a low-rank delta, and back."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths
from jlora._config import LoraConfig
from jlora._lowrank import Axes, LoraWeight, add, matrix_shape

Lora = dict[str, LoraWeight]


def split(
    params: Any, config: LoraConfig, key: jax.Array, *, axes: Mapping[str, Axes] | None = None
) -> tuple[Any, Lora]:
    """The pair (frozen, lora): ``params`` as it is, and a fresh delta for each targeted leaf.

    A starts uniform within ±1/sqrt(fan in) and B at zero, so the adapted function equals the base
    function exactly. The start of each leaf depends on ``key`` and the leaf's path alone.

    Args:
        params: any pytree of arrays. ShapeDtypeStructs will do under ``jax.eval_shape``.
        config: what to adapt.
        key: a random key.
        axes: from `trace_axes`: how each weight is used. Without it a weight of two dimensions is
            (in, out); one of more dimensions needs it.

    Returns:
        frozen: has the structure of ``params``.
        lora: a flat dict from a leaf's path to its `LoraWeight`.

    Raises:
        ValueError: when a pattern matches nothing, or a matched leaf can't be adapted: every such
            leaf is named.

    Example:
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> lora["kernel"].a.shape, lora["kernel"].b.shape
        ((7, 2), (2, 5))
    """
    leaves, _ = _paths.flatten(params)
    chosen = _choose(leaves, config, axes)
    lora = {
        path: _fresh(leaves[path].shape, chosen[path], config, _key_for(key, path))
        for path in chosen
    }
    return params, lora


def merge(frozen: Any, lora: Mapping[str, LoraWeight]) -> Any:
    """The plain tree for inference: ``W + scaling * A B`` at each adapted leaf.

    The sum is formed in float32 (or wider, if the weight is) and cast once to the weight's dtype.
    With a bfloat16 weight the result carries bfloat16's rounding: three digits.

    Raises:
        ValueError: when ``lora`` names a leaf that ``frozen`` has not, or one of another shape.
    """
    return _change(frozen, lora, lambda weight, node: add(weight, node.delta()))


def unmerge(params: Any, lora: Mapping[str, LoraWeight]) -> Any:
    """The frozen tree back from merged ``params``: ``W - scaling * A B`` at each adapted leaf.

    For merged parameters whose base is gone. It is exact only to the rounding of the weight's
    dtype; if the frozen tree was kept, use that.

    Raises:
        ValueError: as `merge`.
    """
    return _change(params, lora, lambda weight, node: add(weight, -node.delta()))


def check(tree: Any, lora: Mapping[str, LoraWeight]) -> tuple[dict[str, Any], Any]:
    """The flattened tree, once every node of ``lora`` is known to fit its leaf.

    Raises:
        ValueError: naming every node that fits no leaf, with both shapes.
    """
    leaves, structure = _paths.flatten(tree)
    problems = []
    for path, node in lora.items():
        if not isinstance(node, LoraWeight):
            problems.append(f"{path}: expected a LoraWeight, got {type(node).__name__}")
        elif path not in leaves:
            problems.append(f"{path}: no such leaf. {_paths.nearest(path, leaves, 3)}")
        elif problem := _misfit(np.shape(leaves[path]), node):
            problems.append(f"{path}: {problem}")
    if problems:
        raise ValueError("the adapter does not fit the parameters:\n  " + "\n  ".join(problems))
    return leaves, structure


def _misfit(shape: tuple[int, ...], node: LoraWeight) -> str | None:
    stacks, inputs = len(node.axes.stack), len(node.axes.inputs)
    expected = stacks + inputs + 1, stacks + 1 + len(node.axes.outputs)
    found = np.ndim(node.a), np.ndim(node.b)
    if found != expected:
        return (
            f"A and B have {found[0]} and {found[1]} dimensions, but the axes {node.axes} ask for "
            f"{expected[0]} and {expected[1]}. Stacked adapters go through jax.vmap"
        )
    if node.shape != shape:
        return f"the adapter is for shape {node.shape}, the leaf has {shape}"
    return None


def _change(tree, lora, change):
    leaves, structure = check(tree, lora)
    new = [change(leaf, lora[path]) if path in lora else leaf for path, leaf in leaves.items()]
    return jax.tree.unflatten(structure, new)


def _choose(leaves: dict[str, Any], config: LoraConfig, axes) -> dict[str, Axes]:
    """The axes of each leaf to adapt, or one error that names all that can't be."""
    paths = _paths.find(config.targets, leaves, what="targets")
    if config.exclude:
        excluded = set(_paths.find(config.exclude, leaves, what="exclude"))
        paths = [path for path in paths if path not in excluded]
    unclear = getattr(axes, "unclear", {})
    chosen, problems = {}, []
    for path in paths:
        shape, dtype = np.shape(leaves[path]), getattr(leaves[path], "dtype", None)
        if axes is not None and path in axes:
            its_axes = axes[path]
        elif path in unclear:
            problems.append(f"{path}: {unclear[path]}. Exclude it, or give its axes by hand")
            continue
        elif axes is not None or len(shape) < 2:
            continue  # a bias or a scale beside the weight that the pattern means
        elif len(shape) == 2:
            its_axes = Axes()
        else:
            problems.append(
                f"{path} has shape {shape}: which of its dimensions are inputs, outputs or stacks "
                "can't be told from the shape. Pass axes=jlora.trace_axes(fn, params, *args)"
            )
            continue
        if problem := _unfit(shape, dtype, its_axes, config.rank):
            problems.append(f"{path} {problem}")
        chosen[path] = its_axes
    if problems:
        raise ValueError("split can't adapt:\n  " + "\n  ".join(problems))
    if not chosen:
        raise ValueError(
            f"targets {config.targets!r} (exclude {config.exclude!r}) leaves no weight to adapt. "
            f"It matches: {', '.join(paths[:5]) or 'nothing that is not excluded'}. The weights "
            f"are: {', '.join(_weights(leaves, axes)[:5])}"
        )
    return chosen


def _unfit(shape, dtype, axes: Axes, rank: int) -> str | None:
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return f"is of dtype {dtype}: expected a floating type"
    dims = len(axes.stack) + len(axes.inputs) + len(axes.outputs)
    if dims != len(shape):
        return f"has shape {shape}, but its axes {axes} speak of {dims} dimensions"
    inputs, outputs = matrix_shape(shape, axes)
    if rank > min(inputs, outputs):
        return (
            f"is a matrix of {inputs} x {outputs}: rank {rank} is larger than it. "
            f"Expected at most {min(inputs, outputs)}"
        )
    return None


def _weights(leaves, axes) -> list[str]:
    return [path for path in leaves if (path in axes if axes else np.ndim(leaves[path]) >= 2)]


def _key_for(key: jax.Array, path: str) -> jax.Array:
    """A key that depends on the path and not on the order of leaves (the same on any platform)."""
    digest = hashlib.sha256(path.encode()).digest()
    return jax.random.fold_in(key, int.from_bytes(digest[:4], "big"))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fresh(shape: tuple[int, ...], axes: Axes, config: LoraConfig, key: jax.Array) -> LoraWeight:
    stack = tuple(shape[dim] for dim in axes.stack)
    inputs = tuple(shape[dim] for dim in axes.inputs)
    outputs = tuple(shape[dim] for dim in axes.outputs)
    fan_in, _ = matrix_shape(shape, axes)
    bound = fan_in**-0.5
    return LoraWeight(
        a=jax.random.uniform(key, (*stack, *inputs, config.rank), config.dtype, -bound, bound),
        b=jnp.zeros((*stack, config.rank, *outputs), config.dtype),
        scaling=jnp.float32(config.scaling),
        axes=axes,
    )
