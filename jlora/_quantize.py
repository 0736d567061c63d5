"""Weights in a few bits: `quantize` makes them, `dequantize` and `requantize` undo and redo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _placement, _targets, _words
from jlora._config import ALL_LINEAR, LoraConfig
from jlora._frozen_leaf import decoded, is_frozen_leaf
from jlora._lowrank import Axes
from jlora._quantised import FORMATS, WRITTEN, QuantizedWeight, encoded
from jlora._traced_axes import TracedAxes


def quantize(
    params: Any,
    format: str,
    *,
    targets: str | tuple[str, ...] | Callable[[str, Any], bool] = ALL_LINEAR,
    axes: Mapping[str, Axes] | None = None,
) -> Any:
    """The parameters with some weights in a few bits: a `QuantizedWeight` in place of each.

    All else of jlora takes the tree in the place of a plain one: `split`, `lift`, `merge`,
    `trace_axes`, `explain`, `checkpoint`, `peft`. A product decodes its weight where it is done,
    a layer at a time where layers are scanned; nothing decoded is kept for the gradient. Adapters
    train beside it as beside a plain weight (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    Blocks run along a weight's inputs; along the rows of a table, if ``axes`` say that they are
    looked up, so that a lookup decodes them alone. Rows that blocks do not divide are filled up;
    the weight keeps its shape.

    Args:
        params: any pytree of arrays.
        format: ``"int8"`` (one scale for each output, 8 bits), ``"nf4"`` (blocks of 64, scales
            quantised again, 4.13 bits), or one of llama.cpp's with blocks of 32: ``"Q8_0"`` (8.5
            bits), ``"Q5_1"`` (6), ``"Q5_0"`` (5.5), ``"Q4_1"`` (5), ``"Q4_0"`` (4.5).
        targets: which weights, as in `LoraConfig`.
        axes: how each weight is used, from `trace_axes` or by hand, as for `split`.

    Returns:
        a tree of the structure of ``params``, with a leaf of several arrays for each such weight.

    Raises:
        ValueError: when there is no such format, or it is only read; when a weight is quantised
            already, no matrix, or has values that the format can't hold (NaN, infinity): every such
            leaf is named.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 5))}
        >>> small = jlora.quantize(params, "nf4", targets="kernel")
        >>> small["kernel"].format, small["kernel"].shape, small["kernel"].nbytes
        ('nf4', (64, 5), 173)
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split(small, config, jax.random.key(1))
        >>> apply = jlora.lift(lambda params, x: x @ params["kernel"])
        >>> apply(frozen, lora, jnp.ones((3, 64))).shape
        (3, 5)
    """
    _check_format(format)
    leaves, structure = _paths.flatten(params)
    config = LoraConfig(targets=targets, rank=1)
    plan = _targets.plan(leaves, config, axes, cant="quantize can't take")
    problems = []
    for path, (its, _) in plan.adapted.items():
        leaf = leaves[path]
        if isinstance(leaf, QuantizedWeight):
            problems.append(
                f"{path} is {leaf.format} already: jlora.dequantize gives it back plain"
            )
        elif is_frozen_leaf(leaf):
            problems.append(f"{path} is a {type(leaf).__name__}: expected an array")
        elif problem := _not_finite(leaf):
            problems.append(f"{path} {problem}")
        else:
            new = leaves[path] = encoded(leaf, _by_rows(path, its, axes), format)
            if _overflows(new):
                problems.append(f"{path} has values beyond what {format} can hold")
    if problems:
        raise ValueError(f"quantize can't take:{_words.first_few(problems, 8)}")
    return jax.tree.unflatten(structure, leaves.values())


def dequantize(params: Any) -> Any:
    """The parameters with a plain array for each `QuantizedWeight`, in the weight's dtype.

    Args:
        params: from `quantize`, or from ``models.load(..., quantize=...)``.

    Returns:
        a tree of arrays; what was plain is as it was.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> small = jlora.quantize({"kernel": jnp.ones((64, 5))}, "int8", targets="kernel")
        >>> plain = jlora.dequantize(small)["kernel"]
        >>> plain.shape, plain.dtype, bool((plain == 1).all())
        ((64, 5), dtype('float32'), True)
    """
    leaves, structure = _paths.flatten(params)
    plain = [
        decoded(leaf) if isinstance(leaf, QuantizedWeight) else leaf for leaf in leaves.values()
    ]
    return jax.tree.unflatten(structure, plain)


def requantize(merged: Any, *, like: Any) -> Any:
    """The merged parameters in the formats that another tree has.

    Blocks of which nothing changed keep the other tree's bytes, to the bit. What changed is
    rounded: in 4 bits most of a usual delta is lost.

    Args:
        merged: from `merge`.
        like: the tree of quantised weights that it was merged from.

    Returns:
        a tree of the structure of ``like``.

    Raises:
        ValueError: when the trees do not fit each other, a weight changed whose format is only
            read, or has values that the format can't hold: every such leaf is named.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 5))}
        >>> small = jlora.quantize(params, "Q4_1", targets="kernel")
        >>> again = jlora.requantize(jlora.dequantize(small), like=small)
        >>> bool((again["kernel"].data == small["kernel"].data).all())
        True
    """
    leaves, structure = _paths.flatten(like)
    new, _ = _paths.flatten(merged)
    problems = []
    for path, leaf in leaves.items():
        if path not in new:
            problems.append(f"{path} is not among the merged parameters")
        elif not isinstance(leaf, QuantizedWeight) or isinstance(new[path], QuantizedWeight):
            leaves[path] = new[path]
        elif np.shape(new[path]) != leaf.shape:
            problems.append(f"{path} has shape {np.shape(new[path])}, expected {leaf.shape}")
        elif not leaf.encodes and not _unchanged(leaf, new[path]):
            problems.append(f"{path} changed, and {leaf.format} is only read: {_COARSE}")
        elif leaf.encodes:
            leaves[path] = _alike(leaf, new[path])
            if _overflows(leaves[path]):
                problems.append(f"{path} has values beyond what {leaf.format} can hold")
    problems += [f"{path} is not expected" for path in new if path not in leaves]
    if problems:
        raise ValueError(f"requantize can't take:{_words.first_few(problems, 8)}")
    return jax.tree.unflatten(structure, leaves.values())


_COARSE = f"keep it plain, or quantize it as one of {', '.join(WRITTEN)}"


def _by_rows(path: str, its: Axes, axes: Mapping[str, Axes] | None) -> Axes:
    """The axes whose inputs lie along a row, in a table that is read by its rows."""
    chosen = axes.looked_up.get(path, ()) if isinstance(axes, TracedAxes) else ()
    if set(chosen) & set(its.inputs):
        return Axes(inputs=its.outputs, outputs=its.inputs, stack=its.stack)
    return its


def _check_format(format: str) -> None:
    if format in WRITTEN:
        return
    if format in FORMATS:
        raise ValueError(
            f"{format} is only read, as files of models have it: "
            f'jlora.models.load(source, quantize="stored"). Written are {", ".join(WRITTEN)}'
        )
    raise ValueError(f"there is no format {format!r}: expected one of {', '.join(WRITTEN)}")


def _not_finite(leaf: Any) -> str | None:
    if _placement.traced(leaf) or bool(jnp.isfinite(leaf).all()):
        return None
    return "has values that are no finite numbers"


def _overflows(leaf: QuantizedWeight) -> bool:
    return not _placement.traced(jax.tree.leaves(leaf)[0]) and not bool(_is_finite(leaf))


@jax.jit
def _is_finite(leaf: QuantizedWeight) -> jax.Array:
    return jnp.isfinite(leaf.plain()).all()


@jax.jit
def _alike(leaf: QuantizedWeight, weight: jax.Array) -> QuantizedWeight:
    return leaf.like(weight)


def _unchanged(leaf: QuantizedWeight, weight: Any) -> bool:
    return not _placement.traced(weight) and bool((decoded(leaf) == weight).all())
