"""Which leaves a configuration means, and how each is adapted: checked before any work is done."""

from __future__ import annotations

import collections
import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _paths, _words
from jlora._config import ALL_LINEAR, LoraConfig, Ranks
from jlora._lowrank import Axes, matrix_shape
from jlora._registry import method_class
from jlora._traced_axes import TracedAxes

BIAS_NAMES = ("bias", "b")  # as Flax, Equinox and Haiku call them

_SHOWN = 18  # leaves that an error names
_ASSUMED = (
    "It is taken as (in, out): if it is a stack of vectors, as norms of layers are, pass "
    "axes=jlora.trace_axes(fn, params, *args)"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of each leaf; every other stays frozen."""

    adapted: dict[str, tuple[Axes, Ranks]]
    whole: list[str]
    biases: dict[str, tuple[str, Ranks]]  # the adapted weight beside it, and that one's ranks
    rows: dict[str, tuple[int, tuple[int, ...]]]  # the vocabulary's dimension, the tokens


def plan(
    leaves: Mapping[str, Any],
    config: LoraConfig,
    axes: Mapping[str, Axes] | None,
    *,
    cant: str = "split can't adapt",
) -> Plan:
    """The plan for a tree's leaves; ``cant`` begins the message where it can't be carried out.

    Raises:
        ValueError: when a pattern matches nothing, or a leaf can't be adapted as it is asked: every
            such leaf is named.
    """
    problems: list[str] = []
    paths = _targeted(leaves, config, axes)
    adapted = _adapted(paths, leaves, config, axes, problems)
    if not problems and not adapted:
        raise ValueError(
            f"targets {config.targets!r} (exclude {config.exclude!r}, layers {config.layers}) "
            f"leaves no weight to adapt. "
            f"It matches: {_words.named(map(_paths.shown, paths)) or 'nothing else'}."
            f" {_weights(leaves, axes)}"
        )
    whole = _whole(leaves, config, adapted, problems)
    biases = _biases(leaves, adapted, problems) if config.bias == "lora" else {}
    rows = _rows(leaves, config, axes, problems)
    named = collections.Counter([*adapted, *whole, *biases, *rows])
    problems += [
        f"{path} is asked to be adapted in two ways: expected one of targets, train and tokens"
        for path in leaves
        if named[path] > 1
    ]
    problems += _untied(leaves, named)
    if problems:
        raise ValueError(f"{cant}:{_words.first_few(problems, _SHOWN)}")
    return Plan(adapted, whole, biases, rows)


def _untied(leaves, chosen) -> list[str]:
    """What is wrong where one array is two leaves: training one of them would tear them apart."""
    places: dict[int, list[str]] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, (jax.Array, np.ndarray)):
            places.setdefault(id(leaf), []).append(path)
    return [
        f"{' and '.join(paths)} are one array: if they are tied, give the model one leaf that it "
        "uses in both places; if not, copy one of them"
        for paths in places.values()
        if len(paths) > 1 and any(path in chosen for path in paths)
    ]


def _targeted(leaves, config: LoraConfig, axes) -> list[str]:
    """The paths that ``targets`` finds, without the excluded ones."""
    targets = config.targets
    if callable(targets):
        paths = [path for path, leaf in leaves.items() if targets(path, leaf)]
        if not paths:
            raise ValueError(f"targets {targets!r} is True for none of the {len(leaves)} leaves")
    elif targets == ALL_LINEAR:
        if not isinstance(axes, TracedAxes):
            raise ValueError(
                f"targets {ALL_LINEAR!r} reads off the function which weights are linear. "
                "Pass axes=jlora.trace_axes(fn, params, *args)"
            )
        whole = set(_paths.find(config.train, leaves, what="train")) if config.train else set()
        paths = [path for path in leaves if path in axes.linear and path not in whole]
    else:
        paths = _paths.find(targets, leaves, what="targets")
    if config.exclude:
        excluded = set(_paths.find(config.exclude, leaves, what="exclude"))
        paths = [path for path in paths if path not in excluded]
    return paths


def _adapted(paths, leaves, config: LoraConfig, axes, problems: list[str]):
    """The axes and ranks of each leaf to adapt; what can't be adapted goes to ``problems``."""
    seen = isinstance(axes, TracedAxes)  # all of them: a leaf without axes is no weight
    unclear = axes.unclear if seen else {}
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := tuple(getattr(config, field)):
            _paths.find(patterns, paths, what=field)
    method, options = method_class(str(config.method)), config.all_options
    adapted: dict[str, tuple[Axes, Ranks]] = {}
    for path in paths:
        shape, dtype = np.shape(leaves[path]), getattr(leaves[path], "dtype", None)
        if axes is not None and path in axes:
            its_axes = axes[path]
        elif path in unclear and len(shape) == 2:
            its_axes = Axes()
            warnings.warn(
                f"{path} is adapted as (in, out), but how it is used is not clear: "
                f"{unclear[path]}. {_give(path)}",
                stacklevel=4,
            )
        elif path in unclear:
            problems.append(f"{path}: {unclear[path]}. {_give(path)}")
            continue
        elif seen or len(shape) < 2:
            continue  # a bias or a scale beside the weight that the pattern means
        elif len(shape) == 2:
            its_axes = Axes()
        else:
            problems.append(
                f"{path} has shape {shape}: which of its dimensions are inputs, outputs or stacks "
                "can't be told from the shape. Pass axes=jlora.trace_axes(fn, params, *args)"
                + ("" if axes is None else f", or {{..., {path!r}: jlora.Axes(...)}}")
            )
            continue
        problem = _unfit(shape, dtype, its_axes) or method.unfit(shape, its_axes, options)
        if problem:
            problems.append(f"{path} {problem}")
            continue
        ranks, problem = _ranks(path, shape, its_axes, config)
        if problem:
            assumed = not seen and path not in (axes or {})
            problems.append(f"{path} {problem}" + (f". {_ASSUMED}" if assumed else ""))
        elif ranks:
            adapted[path] = its_axes, ranks
    problems += _beyond(paths, config)
    return adapted


def _beyond(paths, config: LoraConfig) -> list[str]:
    """What is wrong where stacks that are named by their layers end before one that is chosen."""
    ends = [named.stop for path in paths if (named := _paths.span(path)) is not None]
    if config.layers is None or not ends or max(config.layers) < max(ends):
        return []
    return [f"layers names {max(config.layers)}, but the stacks end with layer {max(ends) - 1}"]


def _give(path: str) -> str:
    return f"Give its axes (axes | {{{path!r}: jlora.Axes(...)}}), or exclude it"


def _unfit(shape, dtype, axes: Axes) -> str | None:
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return f"is of dtype {dtype}: expected a floating type"
    dims = len(axes.stack) + len(axes.inputs) + len(axes.outputs)
    if dims != len(shape):
        return f"has shape {shape}, but its axes {axes} speak of {dims} dimensions"
    return None


def _ranks(path: str, shape, axes: Axes, config: LoraConfig) -> tuple[Ranks, str | None]:
    """The leaf's rank, or one for each layer of its stack (0: that layer stays); what is wrong."""
    ranks, alphas = config.ranks_for(path), config.alphas_for(path)
    layers = shape[axes.stack[0]] if axes.stack else None
    for name, each in (("rank", ranks), ("alpha", alphas)):
        if isinstance(each, tuple) and len(each) != layers:
            return 0, (
                f"has {layers or 'no'} layers stacked, but {name}_pattern names {len(each)} "
                f"{name}s for it"
            )
    if config.layers is not None and layers is None:
        number = re.search(r"\d+", path)
        if number is None:
            return 0, "has neither a stack nor a number in its path: layers can't choose it"
        if int(number[0]) not in config.layers:
            return 0, None
    elif config.layers is not None and layers is not None:
        numbers = _paths.numbers(path, layers)
        if _paths.span(path) != numbers and max(config.layers) >= layers:
            return 0, f"has the layers 0 to {layers - 1}, but layers names {max(config.layers)}"
        each = ranks if isinstance(ranks, tuple) else (ranks,) * layers
        ranks = tuple(r if n in config.layers else 0 for n, r in zip(numbers, each, strict=True))
    highest = max(ranks) if isinstance(ranks, tuple) else ranks
    if not highest:
        return 0, None  # of another stack are the layers that are chosen
    inputs, outputs = matrix_shape(shape, axes)
    if not inputs * outputs:
        return 0, f"has shape {tuple(shape)}, and no entries: exclude it"
    method = method_class(str(config.method))
    largest = method.largest_rank(inputs, outputs)
    # A gate of one output is no reason to give up "all-linear", as it is none in PEFT; a start that
    # takes weight has no more of it than there is.
    named = config.targets != ALL_LINEAR or method.moves_weight(config.init)
    if largest is not None and highest > largest and named:
        return 0, (
            f"is a matrix of {inputs} x {outputs}: rank {highest} is larger than it. "
            f"Expected at most {largest}"
        )
    if isinstance(alphas, tuple) and layers is not None:  # scalings differ even so
        return ranks if isinstance(ranks, tuple) else (ranks,) * layers, None
    if isinstance(ranks, tuple) and len(set(ranks)) == 1:
        return highest, None
    return ranks, None


def _whole(leaves, config: LoraConfig, adapted, problems: list[str]) -> list[str]:
    """The leaves that train as they are: those that ``train`` and ``bias`` mean."""
    paths = set(_paths.find(config.train, leaves, what="train")) if config.train else set()
    if config.bias in ("adapted", "all"):
        beside = {path.rpartition("/")[0] for path in adapted}
        biases = [path for path in leaves if path.rpartition("/")[2] in BIAS_NAMES]
        if config.bias == "adapted":
            biases = [path for path in biases if path.rpartition("/")[0] in beside]
        if not biases:
            problems.append(f"bias is {config.bias!r}, but no leaf is called bias or b there")
        paths.update(biases)
    for path in paths:
        dtype = getattr(leaves[path], "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            problems.append(f"{path} is of dtype {dtype}: expected a floating type to train")
    return [path for path in leaves if path in paths]


def _biases(leaves, adapted, problems: list[str]) -> dict[str, tuple[str, Ranks]]:
    """For each bias beside an adapted weight, that weight and its ranks."""
    biases: dict[str, tuple[str, Ranks]] = {}
    for path, (_, ranks) in adapted.items():
        folder = path.rpartition("/")[0]
        names = [f"{folder}/{name}" if folder else name for name in BIAS_NAMES]
        bias = next((name for name in names if name in leaves), None)
        if bias is None:
            problems.append(f"{path} has no bias beside it, which bias='lora' needs: exclude it")
        elif bias in biases:
            problems.append(
                f"{bias} stands beside {biases[bias][0]} and {path}: bias='lora' needs one for each"
            )
        else:
            biases[bias] = path, ranks
    return biases


def _rows(leaves, config: LoraConfig, axes, problems: list[str]):
    """The tables of which some rows train."""
    rows: dict[str, tuple[int, tuple[int, ...]]] = {}
    for pattern, tokens in config.tokens.items():
        for path in _paths.find(pattern, leaves, what="tokens"):
            shape = np.shape(leaves[path])
            its_axes = (axes or {}).get(path, Axes())
            if len(shape) != 2 or its_axes.stack:
                problems.append(f"{path} has shape {shape}: expected a table of rows for tokens")
                continue
            [vocabulary] = its_axes.inputs
            if max(tokens) >= shape[vocabulary]:
                problems.append(
                    f"{path} has {shape[vocabulary]} rows: tokens names row {max(tokens)}"
                )
            rows[path] = vocabulary, tokens
    return rows


def _weights(leaves, axes) -> str:
    """The leaves that could be adapted, in one sentence."""
    traced = axes if isinstance(axes, TracedAxes) else None
    weights = [p for p in leaves if (p in traced if traced else np.ndim(leaves[p]) >= 2)]
    if weights:
        return f"The weights are: {_words.named(map(_paths.shown, weights))}"
    return "No leaf is a weight: " + (
        "none has two dimensions or more" if traced is None else "the function multiplies by none"
    )
