"""The configuration that a file of PEFT's implies."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora import _starts
from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._peft_form import LowRank, Rows, Whole
from jlora.peft import _fields, _matching


def configuration(settings: Mapping[str, Any], lora: Lora, leaves: Collection[str]) -> LoraConfig:
    """The configuration with which `split` gives nodes like these of a model's ``leaves``."""
    forms = {path: node.peft_form() for path, node in lora.items()}
    adapted = {path: form for path, form in forms.items() if isinstance(form, LowRank)}
    start = settings["init_lora_weights"]
    start = start.lower() if isinstance(start, str) else start
    plain = LoraConfig(
        targets=tuple(map(LoraConfig.pattern_of, adapted)),
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        rslora=settings["use_rslora"],
        method="dora" if settings["use_dora"] else "lora",
        dropout=settings["lora_dropout"],
        dtype=str(jnp.result_type(*(form.a for form in adapted.values()))),
    )
    ranks: dict[str, Any] = {}
    alphas: dict[str, Any] = {}
    for path, form in adapted.items():
        rank, alpha = _per_layer(form, lora[path].axes.stack, plain)  # type: ignore
        if rank != plain.rank:
            ranks[LoraConfig.pattern_of(path)] = rank
        if alpha != plain.alpha:
            alphas[LoraConfig.pattern_of(path)] = alpha
    highest = [max(r) if isinstance(r, tuple) else r for r in (plain.rank, *ranks.values())]
    init = start if start in _fields.REPEATED else _fields.STARTS[start]
    if _starts.find(init).even_rank and any(rank % 2 for rank in highest):
        init = "kaiming"  # of sums of ranks
    whole = [path for path, form in forms.items() if isinstance(form, Whole)]
    bias = {"none": "none", "lora_only": "adapted", "all": "all"}[settings["bias"]]
    beside = {path.rpartition("/")[0] for path in adapted}
    biases = [
        path
        for path in whole
        for module, _, last in [path.rpartition("/")]
        if last in ("bias", "b") and (bias == "all" or (bias == "adapted" and module in beside))
    ]
    # PEFT's lora_only means no biases beside experts, which are parameters there: ours would
    of_adapted = {f"{module}/{last}" for module in beside for last in ("bias", "b")}
    if bias == "adapted" and not of_adapted & set(leaves) <= set(biases):
        bias, biases = "none", []
    return dataclasses.replace(
        plain,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        init=init,
        bias="lora" if settings["lora_bias"] else bias if biases else "none",
        train=tuple(LoraConfig.pattern_of(path) for path in whole if path not in biases),
        tokens={
            LoraConfig.pattern_of(path): form.tokens
            for path, form in forms.items()
            if isinstance(form, Rows)
        },
    )


def _per_layer(form: LowRank, stack: tuple[int, ...], config: LoraConfig) -> tuple[Any, Any]:
    """The rank and the alpha of one leaf: a number each, or one a layer where they differ."""
    scaling, rank = np.asarray(form.scaling), form.a.shape[-1]
    if scaling.ndim == 0:
        return rank, _matching.alpha_of(float(scaling), rank, config)
    if not stack:
        return rank, _matching.alpha_of(float(scaling.max()), rank, config)
    layers = scaling.reshape(len(scaling), -1, rank)
    ranks = tuple(int((layer != 0).sum(-1).max()) for layer in layers)
    alphas = tuple(
        _matching.alpha_of(float(layer.max()), rank, config) if rank else config.alpha
        for layer, rank in zip(layers, ranks, strict=True)
    )
    same = len(set(alphas)) == 1
    return ranks[0] if len(set(ranks)) == 1 else ranks, alphas[0] if same else alphas
