"""`save`: (lora, config) as an adapter in the PEFT format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora import _starts
from jlora._config import LoraConfig
from jlora._lowrank import Axes
from jlora._merge import check
from jlora._methods import BiasDelta, DoraWeight, LoraWeight, Node, TokenRows, WholeWeight
from jlora.peft import _lora_bias, _matching, _names, _pairs, _tensors
from jlora.peft._names import Layout, Leaf, Parameter
from jlora.peft._pairs import Pair

_STARTS = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def save(
    directory: str | Path,
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    *,
    names: _names.Names | None = None,
    axes: Mapping[str, Axes] | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT 0.21 does.

    PEFT's ``alpha / rank`` is the adapter's own scaling; a layer that has none is no target. Both
    files are complete before the first takes its place.

    Args:
        directory: a new or an empty folder; with ``overwrite`` one whose adapter is replaced.
        lora: an adapter of ``model``'s own parameters. What started with part of the weight
            (``pissa``, ``olora``) goes through `jlora.rebase` first.
        config: the configuration that it was split with.
        model: the model or the tree that `load` would be given. Its values are read where only
            some rows of a table train.
        names: as for `load`.
        axes: as for `load`.
        base_model: what ``base_model_name_or_path`` says; the model's own name unless given.
        overwrite: replaces an adapter in the folder; other files stay.

    Raises:
        ValueError: when the folder holds something, or when the adapter can't be written in this
            format: every reason is named.
        OSError: when the files can't be written; what was there stays.

    Example:
        >>> jlora.peft.save("adapter", lora, config, model)
    """
    known = _names.layout(model, names, axes)
    check(model.params if known.is_language_model else model, lora)
    writer = _Writer(lora, config, known)
    tensors, settings = writer.contents()
    if writer.problems:
        raise ValueError(
            "the adapter can't be written in the PEFT format:\n  " + "\n  ".join(writer.problems)
        )
    own = model.name if known.is_language_model else None
    settings["base_model_name_or_path"] = base_model or own
    settings["task_type"] = "CAUSAL_LM" if known.is_language_model else None
    _tensors.write(Path(directory), tensors, settings, overwrite=overwrite)


class _Writer:
    """The tensors and the settings of one adapter."""

    def __init__(self, lora: Mapping[str, Node], config: LoraConfig, layout: Layout):
        self.lora, self.config, self.layout = lora, config, layout
        self.problems: list[str] = []
        self.values: dict[str, np.ndarray] = {}
        self.tied = False  # something is written for the embedding and the head alike

    def contents(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self._check()
        if self.problems:
            return {}, {}
        pairs = self._pairs()
        tensors = self._adapted(pairs)
        tokens = self._rows(tensors)
        saved, bias = self._whole(tensors, pairs)
        settings = {
            **self._targets(pairs),
            **self._strengths(pairs),
            "lora_dropout": self.config.dropout,
            "use_dora": any(isinstance(node, DoraWeight) for node in self.lora.values()),
            "use_rslora": self.config.rslora,
            "init_lora_weights": _STARTS[self.config.init],
            "fan_in_fan_out": any(
                p.transposed and not p.embeds for p in map(self.layout.parameters.get, pairs) if p
            ),
            "bias": bias,
            "lora_bias": self._has_lora_bias,
            "modules_to_save": saved or None,
            "trainable_token_indices": tokens or None,
            "ensure_weight_tying": self.tied,
        }
        if settings["target_parameters"]:
            settings["lora_dropout"] = 0.0  # PEFT has none for parameters
        return tensors, settings

    @property
    def _has_lora_bias(self) -> bool:
        return any(isinstance(node, BiasDelta) for node in self.lora.values())

    def _check(self) -> None:
        """What this format does not hold."""
        if not any(isinstance(node, LoraWeight) for node in self.lora.values()):
            self.problems.append("no leaf is adapted: expected at least one LoraWeight")
        if _starts.find(self.config.init).moves_weight:
            self.problems.append(
                f"init is {self.config.init!r}, which took weight out of the model: "
                "jlora.rebase(lora, start, config) makes an adapter of the original of it"
            )
        for path, node in self.lora.items():
            if path not in self.layout.leaves:
                self.problems.append(f"{path}: names has no torch module for it")
            elif isinstance(node, LoraWeight) and path in self.layout.unclear:
                self.problems.append(self.layout.unclear[path])
            elif not isinstance(node, (LoraWeight, WholeWeight, BiasDelta, TokenRows)):
                self.problems.append(f"{path}: PEFT has nothing like {type(node).__name__}")
            elif isinstance(node, LoraWeight) and node.axes != self.layout.leaves[path].axes:
                self.problems.append(
                    f"{path}: the adapter reads it as {node.axes}, the names as "
                    f"{self.layout.leaves[path].axes}"
                )
        adapted = {
            parameter.module
            for path, node in self.lora.items()
            if isinstance(node, LoraWeight)
            for parameter in self.layout.of_leaf(path)
        }
        self.problems += [
            f"{path}: {parameter.module} has a bias on B and no B"
            for path, node in self.lora.items()
            if isinstance(node, BiasDelta)
            for parameter in self.layout.of_leaf(path)
            if parameter.module not in adapted
        ]
        kinds = {isinstance(node, DoraWeight) for node in self.lora.values()
                 if isinstance(node, LoraWeight)}  # fmt: skip
        if len(kinds) > 1:
            self.problems.append("some leaves have DoRA and others LoRA: PEFT has one for all")

    # LoRA and DoRA

    def _pairs(self) -> dict[str, Pair]:
        """The pair of every adapted torch parameter, by its full name."""
        self.arrays = {
            path: _arrays(self.layout.leaves[path], node)
            for path, node in self.lora.items()
            if isinstance(node, LoraWeight)
        }
        pairs: dict[str, Pair] = {}
        for name, parameter in self.layout.parameters.items():
            if not parameter.is_matrix:
                continue
            pieces, magnitudes = [], []
            for part in parameter.parts:
                node = self.lora.get(part.leaf.path)
                if isinstance(node, LoraWeight) and (pair := self._piece(part, node)):
                    pieces.append((part.theirs, pair))
                    magnitudes.append((part.theirs, pair.magnitude))
            if not pieces:
                continue
            pair = pieces[0][1]
            if len(parameter.parts) > 1:
                pair = _pairs.beside(pieces, parameter.outputs)
                pair = self._with_magnitudes(parameter, pair, magnitudes)
            pairs[name] = _pairs.uniform(pair)
            if pair.magnitude is not None and parameter.bare:
                self.problems.append(f"{name} has DoRA: PEFT has none for parameters of experts")
        return pairs

    def _piece(self, part: _names.Part, node: LoraWeight) -> Pair | None:
        """One part's pair without the columns that only pad it; None where nothing is adapted."""
        leaf, path = part.leaf, part.leaf.path
        a, b, scaling = self.arrays[path]
        scaling = scaling[part.layer].reshape(-1, node.rank)
        if (scaling != scaling[0]).any():
            self.problems.append(f"{path}: its experts differ in their scaling: PEFT has one")
        pair = Pair(a[part.layer], b[part.layer], scaling[0])
        padding = pair.scaling == 0
        here = slice(*part.ours.indices(leaf.outputs))
        others = np.delete(pair.b, np.arange(here.start, here.stop), axis=-1)
        mine = pair.b[..., here]
        # of a leaf that holds several modules: the columns that are another's alone
        elsewhere = _any_row(others) & ~_any_row(mine)
        pair = _pairs.without(Pair(pair.a, mine, pair.scaling), padding | elsewhere)
        if not pair.rank:
            return None
        if isinstance(node, DoraWeight):
            magnitude = np.asarray(node.magnitude).reshape(*leaf.stack, leaf.outputs)
            return Pair(pair.a, pair.b, pair.scaling, magnitude[part.layer][..., here])
        return pair

    def _with_magnitudes(self, parameter: Parameter, pair: Pair, magnitudes) -> Pair:
        if magnitudes[0][1] is None:
            return pair
        if len(magnitudes) < len(parameter.parts):
            self.problems.append(
                f"{parameter.full_name}: some of its leaves have DoRA and others nothing"
            )
            return pair
        whole = np.concatenate([each for _, each in magnitudes])
        return Pair(pair.a, pair.b, pair.scaling, whole)

    def _adapted(self, pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
        parameters = [self.layout.parameters[name] for name in pairs]
        prefixes = _pairs.prefixes(parameters)
        tensors: dict[str, np.ndarray] = {}
        for parameter in parameters:
            prefix = prefixes[parameter.full_name]
            pair = pairs[parameter.full_name]
            tensors |= _pairs.write(parameter, prefix, pair)
            if self._has_lora_bias:
                bias = _lora_bias.write(parameter, pair, self.lora, self.layout)
                if isinstance(bias, str):
                    self.problems.append(bias)
                else:
                    tensors[_lora_bias.tensor_name(prefix)] = bias
            if parameter.module == self.layout.tied:
                self.tied = True
                a, b = (tensors[name] for name in _pairs.tensor_names(parameter, prefix))
                tensors |= {
                    f"{_names.HEAD}.lora_A.weight": b.T,
                    f"{_names.HEAD}.lora_B.weight": a.T,
                }
                if pair.magnitude is not None:
                    self.problems.append(
                        f"{prefix} has DoRA and is the head as well: PEFT can't tie the two"
                    )
        return tensors

    def _targets(self, pairs: Mapping[str, Pair]) -> dict[str, Any]:
        """``target_modules`` and ``target_parameters``: short names where they mean the same."""
        parameters = self.layout.parameters
        modules = [parameters[name].module for name in pairs if not parameters[name].bare]
        others = [p.module for p in parameters.values() if p.module not in modules]
        found: dict[str, Any] = {"target_modules": _short(modules, others)}
        bare = [name for name in pairs if parameters[name].bare]
        others = [p.full_name for p in parameters.values() if p.full_name not in pairs]
        found["target_parameters"] = _short(bare, others) or None
        return found

    def _strengths(self, pairs: Mapping[str, Pair]) -> dict[str, Any]:
        """``r`` and ``lora_alpha``, and the patterns where a module has others."""
        parameters = self.layout.parameters
        ranks = {parameters[name].target: pair.rank for name, pair in pairs.items()}
        alphas = {
            parameters[name].target: _matching.alpha_of(
                float(pair.scaling[0]), pair.rank, self.config
            )
            for name, pair in pairs.items()
        }
        # PEFT warns of a pattern that means parameters alone: let theirs be the default
        first = [parameters[name].target for name in pairs if parameters[name].bare]
        rank, rank_pattern = _patterns(ranks, self.config.rank, first)
        alpha, alpha_pattern = _patterns(alphas, self.config.alpha, first)
        return {
            "r": rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
        }

    # rows and whole tensors

    def _rows(self, tensors: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """Adds the rows as they become, which is what PEFT keeps; the tokens by module."""
        tokens: dict[str, list[int]] = {}
        for path, node in self.lora.items():
            if not isinstance(node, TokenRows):
                continue
            [parameter] = self.layout.of_leaf(path)
            table = np.asarray(node.merged(self.layout.leaves[path].base().astype(np.float32)))
            rows = np.take(table, node.tokens, axis=node.vocabulary)
            rows = rows.T if node.vocabulary == 1 else rows
            name = f"{parameter.module}.token_adapter.trainable_tokens_delta"
            tensors[name] = rows.astype(jnp.dtype(self.config.dtype))
            tokens[parameter.module] = list(node.tokens)
        return tokens

    def _whole(
        self, tensors: dict[str, np.ndarray], pairs: Mapping[str, Pair]
    ) -> tuple[list[str], str]:
        """Adds the leaves that trained whole; ``modules_to_save`` and ``bias``."""
        adapted = {self.layout.parameters[name].module for name in pairs}
        biases: list[str] = []
        saved: list[str] = []
        for module in self.layout.modules:
            parameters = self.layout.of_module(module)
            whole = [p for p in parameters if self._is_whole(p)]
            if not whole:
                continue
            if all(p.name == "bias" for p in whole) and (len(parameters) > 1 or module in adapted):
                biases.append(module)
                inside = ".base_layer" if module in adapted else ""
                tensors[f"{module}{inside}.bias"] = whole[0].in_torch(self._values)
                continue
            if module in adapted:
                self.problems.append(f"{module} is adapted and trained whole: PEFT has one of both")
            saved.append(module)
            for parameter in parameters:
                tensors[parameter.full_name] = parameter.in_torch(self._values)
            if module == self.layout.tied:
                self.tied = True
                tensors[f"{_names.HEAD}.weight"] = tensors[f"{module}.weight"]
        others = [module for module in self.layout.modules if module not in saved]
        if not biases:
            return _short_ends(saved, others), "none"
        return _short_ends(saved, others), "lora_only" if set(biases) <= adapted else "all"

    def _is_whole(self, parameter: Parameter) -> bool:
        return any(isinstance(self.lora.get(p.leaf.path), WholeWeight) for p in parameter.parts)

    def _values(self, path: str) -> np.ndarray:
        """The matrices of a leaf: its trained value, or the frozen one."""
        if path not in self.values:
            node, leaf = self.lora.get(path), self.layout.leaves[path]
            value = node.value if isinstance(node, WholeWeight) else leaf.base()
            self.values[path] = leaf.matrices(value)
        return self.values[path]


def _arrays(leaf: Leaf, node: LoraWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and scaling of a leaf over its whole stack."""
    a = np.asarray(node.a).reshape(*leaf.stack, leaf.inputs, node.rank)
    b = np.asarray(node.b).reshape(*leaf.stack, node.rank, leaf.outputs)
    scaling = np.asarray(node.scaling, np.float32)
    return a, b, np.broadcast_to(scaling, (*leaf.stack, node.rank))


def _any_row(b: np.ndarray) -> np.ndarray:
    """Which rows of B are not all zero, for any expert."""
    used = (b != 0).any(-1)
    return used.reshape(-1, used.shape[-1]).any(0)


def _short(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Last components in place of names, where they mean no other."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    clash = {end for end in ends for other in others if f".{other}".endswith(f".{end}")}
    kept = [name for name in names if name.rpartition(".")[2] in clash]
    return [*(end for end in ends if end not in clash), *kept]


def _short_ends(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """As `_short`, for ``modules_to_save``, which are found at the end of any name."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    clash = {end for end in ends if any(other.endswith(end) for other in others)}
    kept = [name for name in names if name.rpartition(".")[2] in clash]
    return [*(end for end in ends if end not in clash), *kept]


def _patterns(
    values: Mapping[str, Any], default: Any, first: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The default, and a pattern for each name that has another value."""
    held = list(values.values())
    if first:
        default = values[first[0]]
    elif default not in held:
        default = max(held, key=held.count)
    patterns: dict[str, Any] = {}
    for value in dict.fromkeys(held):
        if value != default:
            names = [name for name in values if values[name] == value]
            others = [name for name in values if values[name] != value]
            patterns |= dict.fromkeys(_short(names, others), value)
    if any(_matching.value_for(patterns, name, default) != v for name, v in values.items()):
        patterns = {f"^{re.escape(name)}": v for name, v in values.items() if v != default}
    return default, patterns
