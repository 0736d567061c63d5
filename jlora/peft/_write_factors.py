"""What an adapter's A, B and magnitudes are in PEFT: one pair for each adapted torch parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora._config import LoraConfig
from jlora._peft_form import BiasOnB, LowRank
from jlora.peft import _lora_bias, _matching, _names, _pairs
from jlora.peft._layout import Layout, Leaf, Parameter, Part
from jlora.peft._pairs import Pair
from jlora.peft._short_names import patterns_of, short


class FactorWriter:
    """Pairs, their tensors, and what the configuration says of them.

    Attributes:
        problems: what this format can't hold.
        tied: whether something is written for the embedding and the head alike.
    """

    def __init__(
        self,
        low_rank: Mapping[str, LowRank],
        biases: Mapping[str, BiasOnB],
        config: LoraConfig,
        layout: Layout,
    ):
        self._low_rank, self._biases = low_rank, biases
        self._config, self._layout = config, layout
        self.problems: list[str] = []
        self.tied = False
        self._arrays = {path: arrays(layout.leaves[path], form) for path, form in low_rank.items()}

    def pairs(self) -> dict[str, Pair]:
        """The pair of every adapted torch parameter, by its full name."""
        pairs: dict[str, Pair] = {}
        for name, parameter in self._layout.parameters.items():
            if not parameter.is_matrix:
                continue
            pieces, magnitudes = [], []
            for part in parameter.parts:
                form = self._low_rank.get(part.leaf.path)
                if form is not None and (pair := self._piece(part, form)):
                    pieces.append((part.theirs, pair))
                    magnitudes.append((part.theirs, pair.magnitude))
            if not pieces:
                continue
            pair = pieces[0][1]
            if len(parameter.parts) > 1:
                pair = _pairs.beside(pieces, parameter.outputs)
                pair = self._with_magnitudes(parameter, pair, magnitudes)
            pairs[name] = _pairs.uniform(pair)
            if pair.magnitude is not None and parameter.lone:
                self.problems.append(f"{name} has DoRA: PEFT has none for parameters")
        return pairs

    def _piece(self, part: Part, form: LowRank) -> Pair | None:
        """One part's pair without the columns that only pad it; None where nothing is adapted."""
        leaf, path = part.leaf, part.leaf.path
        a, b, scaling = self._arrays[path]
        scaling = scaling[part.layer].reshape(-1, a.shape[-1])
        if (scaling != scaling[0]).any():
            self.problems.append(f"{path}: its experts differ in their scaling: PEFT has one")
        pair = _pairs.of_outputs(Pair(a[part.layer], b[part.layer], scaling[0]), part.ours)
        if not pair.rank:
            return None
        if form.magnitude is not None:
            magnitude = np.asarray(form.magnitude).reshape(*leaf.stack, leaf.outputs)
            return Pair(pair.a, pair.b, pair.scaling, magnitude[part.layer][..., part.ours])
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

    def tensors(self, pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
        parameters = [self._layout.parameters[name] for name in pairs]
        prefixes = _pairs.prefixes(parameters)
        tensors: dict[str, np.ndarray] = {}
        for parameter in parameters:
            prefix = prefixes[parameter.full_name]
            pair = pairs[parameter.full_name]
            tensors |= _pairs.write(parameter, prefix, pair)
            if self._biases:
                bias = _lora_bias.write(parameter, pair, self._biases, self._layout)
                if isinstance(bias, str):
                    self.problems.append(bias)
                else:
                    tensors[_lora_bias.tensor_name(prefix)] = bias
            if parameter.module == self._layout.tied:
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

    def targets(self, pairs: Mapping[str, Pair]) -> dict[str, Any]:
        """``target_modules`` and ``target_parameters``: short names where they mean the same."""
        parameters = self._layout.parameters
        modules = [parameters[name].module for name in pairs if not parameters[name].lone]
        others = [p.module for p in parameters.values() if p.module not in modules]
        others += self._layout.elsewhere
        found: dict[str, Any] = {"target_modules": short(modules, others)}
        lone = [name for name in pairs if parameters[name].lone]
        others = [p.full_name for p in parameters.values() if p.full_name not in pairs]
        found["target_parameters"] = short(lone, others) or None
        return found

    def strengths(self, pairs: Mapping[str, Pair]) -> dict[str, Any]:
        """``r`` and ``lora_alpha``, and the patterns where a module has others."""
        parameters = self._layout.parameters
        targets = {
            name: name if parameters[name].lone else parameters[name].module for name in pairs
        }
        ranks = {targets[name]: pair.rank for name, pair in pairs.items()}
        alphas = {
            targets[name]: _matching.alpha_of(float(pair.scaling[0]), pair.rank, self._config)
            for name, pair in pairs.items()
        }
        # PEFT warns of a pattern that means parameters alone: let theirs be the default
        first = [name for name in pairs if parameters[name].lone]
        rank, rank_pattern = patterns_of(ranks, self._config.rank, first)
        alpha, alpha_pattern = patterns_of(alphas, self._config.alpha, first)
        return {
            "r": rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
        }


def arrays(leaf: Leaf, form: LowRank) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and scaling of a leaf over its whole stack."""
    rank = np.shape(form.a)[-1]
    a = np.asarray(form.a).reshape(*leaf.stack, leaf.inputs, rank)
    b = np.asarray(form.b).reshape(*leaf.stack, rank, leaf.outputs)
    scaling = np.asarray(form.scaling, np.float32)
    return a, b, np.broadcast_to(scaling, (*leaf.stack, rank))
