"""Which modules a PEFT configuration means, and with what rank and scaling: its rules for names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora import _patterns
from jlora._config import LoraConfig


def is_target(settings: Mapping[str, Any], module: str) -> bool:
    """Whether ``target_modules`` and all that narrows it down choose the module."""
    targets = settings["target_modules"]
    excluded = settings["exclude_modules"] or ()
    if targets is None or _named(excluded, module):
        return False
    saved = settings["modules_to_save"] or ()
    if any(_patterns.start(each, module, r"(^|.*\.){}($|\..*)") for each in saved):
        return False
    if isinstance(targets, str):
        return _patterns.full(targets, module) is not None
    return _named(targets, module) and _in_layers(settings, module)


def is_target_parameter(settings: Mapping[str, Any], parameter: str) -> bool:
    """Whether ``target_parameters`` chooses the parameter, by its full name."""
    return _named(list(settings["target_parameters"] or ()), parameter)


def is_saved(settings: Mapping[str, Any], module: str) -> bool:
    """Whether ``modules_to_save`` chooses the module, or one that it is in: by the name's end."""
    parts = module.split(".")
    around = [".".join(parts[: at + 1]) for at in range(len(parts))]
    return any(each.endswith(name) for name in settings["modules_to_save"] or () for each in around)


def value_for(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of ``rank_pattern`` or ``alpha_pattern`` for a module's or parameter's name."""
    for pattern, value in patterns.items():
        if _patterns.start(pattern, name, r"(.*\.)?({})$"):
            return value
    return default


def rank_and_scaling(settings: Mapping[str, Any], name: str) -> tuple[int, float]:
    """The rank of an adapted module or parameter, and what its product is multiplied by."""
    rank = value_for(settings["rank_pattern"], name, settings["r"])
    alpha = value_for(settings["alpha_pattern"], name, settings["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if settings["use_rslora"] else rank)


def alpha_of(scaling: float, rank: int, config: LoraConfig) -> float:
    """The alpha with which this rank has this scaling: the configuration's, a whole one, or any."""
    unit = config.alpha_for(1.0, rank)
    alpha = config.alpha_for(scaling, rank)
    near = (alpha for alpha in (config.alpha, round(alpha)) if alpha)
    return next((n for n in near if np.float32(n / unit) == np.float32(scaling)), alpha)


def _named(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return _patterns.full(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(settings: Mapping[str, Any], module: str) -> bool:
    layers, patterns = settings["layers_to_transform"], settings["layers_pattern"]
    if layers is None or layers == []:
        return True
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<layer>\d+)\.", module)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        each = (
            _patterns.start(each, module, r"(?:^|.*?\.){}\.(?P<layer>\d+)\.") for each in patterns
        )
        found = next((match for match in each if match), None)
    if found is None:
        return False
    return int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)
