"""Leaves with factors: LoRA, DoRA and biases on B, out of the pairs of all their layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora._config import ALL_LINEAR
from jlora._lora_dict import Lora
from jlora._lowrank import promoted
from jlora._methods import DoraWeight, LoraWeight
from jlora._methods._dora import norms_over_inputs
from jlora.peft import _lora_bias, _matching, _pairs
from jlora.peft._file import AdapterFile
from jlora.peft._layout import Leaf, Parameter
from jlora.peft._pairs import Pair


def read(file: AdapterFile) -> Lora:
    """The nodes of all leaves of which the file has factors; what is wrong goes to its problems."""
    targets = _targets(file)
    prefixes = _pairs.prefixes(targets)
    pairs: dict[str, Pair] = {}
    for parameter in targets:
        if pair := _pair(file, parameter, prefixes[parameter.full_name]):
            pairs[parameter.full_name] = pair
    by_leaf: dict[str, list[Parameter]] = {}
    for parameter in targets:
        for part in parameter.parts:
            by_leaf.setdefault(part.leaf.path, []).append(parameter)
    lora: Lora = {}
    for path, parameters in by_leaf.items():
        if all(parameter.full_name in pairs for parameter in parameters):
            lora[path] = _node(file, file.layout.leaves[path], parameters, pairs)
    if file.settings["lora_bias"]:
        lora |= _lora_bias.read(pairs, file.layout, file.take, file.problems)
    return lora


def _targets(file: AdapterFile) -> list[Parameter]:
    """The parameters that the file adapts, which must be those that the configuration means."""
    settings, theirs, found = file.settings, file.naming.theirs, []
    parameters = [p for p in file.layout.parameters.values() if p.is_matrix]
    for parameter in parameters:
        if parameter.bare or _is_wrapped(file, parameter):
            if _matching.is_target_parameter(settings, theirs(parameter.full_name)):
                found.append(parameter)
            continue
        has = any(n in file.tensors for n in _pairs.tensor_names(parameter, parameter.module))
        targets = settings["target_modules"]
        by_file = isinstance(targets, str) and targets.lower() == ALL_LINEAR
        # without any list the file itself says it, as for "all-linear"
        by_file = by_file or (targets is None and settings["target_parameters"] is None)
        if has if by_file else _matching.is_target(settings, theirs(parameter.module)):
            found.append(parameter)
    return found


def _is_wrapped(file: AdapterFile, parameter: Parameter) -> bool:
    """Whether ``target_parameters`` means a module's own weight."""
    return _matching.is_target_parameter(file.settings, file.naming.theirs(parameter.full_name))


def _pair(file: AdapterFile, parameter: Parameter, prefix: str) -> Pair | None:
    names = _pairs.tensor_names(parameter, prefix)
    missing = [name for name in names if file.take(name) is None]
    magnitude = _pairs.magnitude_name(prefix)
    if file.settings["use_dora"] and file.take(magnitude) is None:
        missing.append(magnitude)
    if missing:
        file.problems.append(f"{', '.join(missing)}: missing")
        return None
    target = parameter.full_name if _is_wrapped(file, parameter) else parameter.target
    rank, scaling = _matching.rank_and_scaling(file.settings, file.naming.theirs(target))
    pair = _pairs.read(parameter, prefix, file.tensors, rank, scaling)
    if isinstance(pair, str):
        file.problems.append(pair)
        return None
    return pair


def _node(
    file: AdapterFile, leaf: Leaf, parameters: list[Parameter], pairs: Mapping[str, Pair]
) -> LoraWeight:
    """The node of one leaf out of the pairs of all its layers."""
    assert leaf.axes is not None
    pieces: dict[tuple[int, ...], list[tuple[slice, Pair]]] = {}
    for parameter in parameters:
        pair = pairs[parameter.full_name]
        for part in parameter.parts:
            if part.leaf.path == leaf.path:
                magnitude = None if pair.magnitude is None else pair.magnitude[part.theirs]
                piece = dataclasses.replace(pair, b=pair.b[..., part.theirs], magnitude=magnitude)
                pieces.setdefault(part.layer, []).append((part.ours, piece))
    joined = {layer: _pairs.beside(each, leaf.outputs) for layer, each in pieces.items()}
    node = low_rank(leaf, joined, file.dtype, file.settings["lora_dropout"])
    if not file.settings["use_dora"]:
        return node
    return _dora(file, leaf, node, pieces)


def low_rank(
    leaf: Leaf, pairs: Mapping[tuple[int, ...], Pair], dtype: Any = None, dropout: float = 0.0
) -> LoraWeight:
    """The node of a leaf out of the pairs of its layers; one without a pair has rank 0 in it."""
    assert leaf.axes is not None
    rank = max(pair.rank for pair in pairs.values())
    # of A and B together: neither is rounded to the other's
    dtypes = (factor.dtype for pair in pairs.values() for factor in (pair.a, pair.b))
    dtype = dtype or promoted(*dtypes)
    a = np.zeros((*leaf.stack, leaf.inputs, rank), dtype)
    b = np.zeros((*leaf.stack, rank, leaf.outputs), dtype)
    scaling = np.zeros((*leaf.stack, rank), np.float32)
    for layer, pair in pairs.items():
        a[layer][..., : pair.rank] = pair.a
        b[layer][..., : pair.rank, :] = pair.b
        scaling[layer][..., : pair.rank] = pair.scaling
    if (scaling == scaling.flat[0]).all():
        scaling = scaling.reshape(-1)[0]
    ins = [leaf.shape[dim] for dim in leaf.axes.inputs]
    outs = [leaf.shape[dim] for dim in leaf.axes.outputs]
    return LoraWeight(
        a=jnp.asarray(a.reshape(*leaf.stack, *ins, rank)),
        b=jnp.asarray(b.reshape(*leaf.stack, rank, *outs)),
        scaling=jnp.asarray(scaling),
        axes=leaf.axes,
        dropout=jnp.float32(dropout) if dropout else None,
    )


def _dora(file: AdapterFile, leaf: Leaf, node: LoraWeight, pieces) -> DoraWeight:
    """With the magnitudes of the file; where it has none, the norms of the weight."""
    covered = sum(span.stop - span.start for each in pieces.values() for span, _ in each)
    places = math.prod(leaf.stack[: leaf.layers]) * leaf.outputs
    if covered == places:
        dtypes = (pair.magnitude.dtype for each in pieces.values() for _, pair in each)
        magnitude = np.zeros((*leaf.stack, leaf.outputs), promoted(*dtypes))
    else:
        magnitude = np.array(norms_over_inputs(leaf.base(), [], node.axes))
        magnitude = magnitude.reshape(*leaf.stack, leaf.outputs)
    for layer, each in pieces.items():
        for span, pair in each:
            magnitude[layer][..., span] = pair.magnitude
    fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    outs = [leaf.shape[dim] for dim in node.axes.outputs]
    return DoraWeight(**fields, magnitude=jnp.asarray(magnitude.reshape(*leaf.stack, *outs)))
