"""Every field of PEFT's configuration: honoured, harmless, or one that must have its one value.

The table is that of PEFT 0.21's LoraConfig. A field that it does not know is refused unless it says
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _files
from jlora._words import first_few

FILE = "adapter_config.json"
VERSION = "0.21.2"  # of the PEFT whose fields these are

# What `load` and `save` carry over, with PEFT's defaults.
HONOURED: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "target_parameters": None,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "ensure_weight_tying": False,
    "init_lora_weights": True,
    "base_model_name_or_path": None,
    "revision": None,  # of the base
}

# What changes nothing in the adapted function.
HARMLESS: dict[str, Any] = {
    "auto_mapping": None,
    "inference_mode": True,  # which PEFT writes for whoever loads it
    "megatron_core": "megatron.core",  # read with a megatron_config alone
    "peft_version": VERSION,
    "qalora_group_size": 16,  # read with use_qalora alone
    "task_type": None,
    "eva_config": None,  # how A was drawn
}

# What jlora does not have: any other value is refused.
FIXED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_config": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}

_CONVERT = (
    "which took weight out of the model in a way that can't be repeated. Convert it in PEFT: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)
# `init_lora_weights` that leave the weight alone: from PEFT's word to the start in jlora.
STARTS: dict[Any, str] = {
    True: "kaiming",
    False: "kaiming",
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "eva": "kaiming",
    "mica": "kaiming",
}
# Those that PEFT repeats when it loads the adapter, because they depend on the weight alone.
REPEATED = ("pissa", "olora")


def found_in(directory: Path) -> dict[str, Any]:
    """The configuration as it stands in the folder.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    path = directory / FILE
    if not path.exists():
        raise ValueError(f"{directory} holds no PEFT adapter: {FILE} is missing")
    found = _files.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object")
    return found


def read(directory: Path) -> dict[str, Any]:
    """Every honoured field of the configuration in the folder, defaults filled in.

    Raises:
        ValueError: when there is none, when it is damaged, or when a field asks for what jlora does
            not have: all of them named at once.
    """
    path, found = directory / FILE, found_in(directory)
    problems = [
        f"{name} is {found[name]!r}: jlora has only {value!r}"
        for name, value in FIXED.items()
        if name in found and not _same(found[name], value)
    ]
    problems += [
        f"{name} is {value!r}: this jlora does not know the field"
        for name, value in found.items()
        if name not in {**HONOURED, **HARMLESS, **FIXED} and says_something(value)
    ]
    settings = {
        # an empty or a null pattern is the default
        name: default if found.get(name) is None else found[name]
        for name, default in HONOURED.items()
    }
    problems += wrong(settings)
    if problems:
        raise ValueError(f"{path} can't be honoured:{first_few(problems, 12)}")
    return settings


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All fields as PEFT writes them, with ``settings`` in place of the defaults."""
    return {**HONOURED, **HARMLESS, **FIXED, **settings}


def says_something(value: Any) -> bool:
    return value is not None and value is not False and value not in ({}, [], "")


def _same(value: Any, only: Any) -> bool:
    return value == only or not (says_something(value) or says_something(only))


def wrong(settings: Mapping[str, Any]):
    """What is wrong with the honoured fields' own values, one sentence each."""
    for name in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "ensure_weight_tying"):
        if not isinstance(settings[name], bool):
            yield f"{name} is {settings[name]!r}: expected true or false"
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(settings[name], str | None):
            yield f"{name} is {settings[name]!r}: expected a name"
    rows = settings["trainable_token_indices"]
    tables = list(rows.values()) if isinstance(rows, dict) else [[] if rows is None else rows]
    if not all(isinstance(tokens, list) and _are_whole(tokens) for tokens in tables):
        yield f"trainable_token_indices is {rows!r}: expected numbers of tokens"
    ranks = {"r": settings["r"]}
    alphas = {"lora_alpha": settings["lora_alpha"]}
    for name, each in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(settings[name], dict):
            yield f"{name} is {settings[name]!r}: expected values by pattern"
        else:
            each.update({f"{name} of {p!r}": value for p, value in settings[name].items()})
    for name, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            yield f"{name} is {rank!r}: expected a whole number of at least 1"
    for name, alpha in alphas.items():
        if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
            yield f"{name} is {alpha!r}: expected a number above 0"
    dropout = settings["lora_dropout"]
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        yield f"lora_dropout is {dropout!r}: expected a number from 0 to below 1"
    if settings["bias"] not in ("none", "all", "lora_only"):
        yield f"bias is {settings['bias']!r}: expected none, all or lora_only"
    yield from wrong_choice(settings)
    start = settings["init_lora_weights"]
    if isinstance(start, str) and start.lower() in REPEATED:
        return
    if isinstance(start, str) and start.startswith(("pissa", "corda", "lora_ga")):
        yield f"init_lora_weights is {start!r}, {_CONVERT}"
    elif start == "loftq":
        yield "init_lora_weights is 'loftq': it belongs to a base that was quantised in PEFT"
    elif not isinstance(start, (bool, str)) or start not in STARTS:
        yield f"init_lora_weights is {start!r}: this jlora does not know the start"


def wrong_choice(settings: Mapping[str, Any]):
    """What is wrong with the fields that choose modules, of whatever type of adapter."""
    layers = settings.get("layers_to_transform")
    if layers is not None and not _are_whole(layers if isinstance(layers, list) else [layers]):
        yield f"layers_to_transform is {layers!r}: expected numbers of layers"
    for name in (
        *("target_modules", "exclude_modules", "modules_to_save", "target_parameters"),
        "layers_pattern",
    ):
        value = settings.get(name)
        # PEFT takes one text for a pattern, but the letters of one for parameters
        one = isinstance(value, str) and name != "target_parameters"
        texts = [value] if one else value
        if texts is not None and not (
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        ):
            yield f"{name} is {value!r}: expected names"


def _are_whole(numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)
