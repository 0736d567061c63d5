"""The model card of an adapter: a README.md from which a reader knows what it is and how it did."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from jlora import _hub
from jlora._words import one_line

LIBRARY = {"peft": "peft", "mlx": "mlx", "ollama": "gguf"}
_TAGS = {"SEQ_CLS": "text-classification", "FEATURE_EXTRACTION": "feature-extraction"}
_MOST_SETTINGS = 40
_NOT_IN_VLLM = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "target_parameters",
)


def card(
    form: str,
    base: str | None,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> str:
    """The card's text.

    Args:
        form: ``"peft"``, ``"mlx"`` or ``"ollama"``.
        base: the model that the adapter was trained on.
        settings: the adapter's own configuration, in its format.
        about: what was saved beside the adapter: ``settings`` of the run, ``system``, and the like.
        scores: measured numbers by name, as train.py records them: ``before`` and ``after``.
    """
    from jlora import __version__

    run = about.get("settings") or {}
    tag = _TAGS.get(str(settings.get("task_type")), "text-generation")
    head = {"library_name": LIBRARY[form], "pipeline_tag": tag}
    if base and (on_hub := _hub.parsed(base)):
        head["base_model"] = on_hub.name
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in head.items()),
        "tags:\n- lora\n- jlora",
        "---",
        "",
        f"# An adapter of {base or 'a model of its own'}",
        "",
        f"Written by jlora {__version__}.",
        "",
        *_table("what", "value", {"base": base, "data": run.get("data"), **_strength(settings)}),
    ]
    if scores:
        lines += ["", "## Scores on rows that were held out", "", *_scores(scores)]
    if system := about.get("system"):
        fence = _fence(str(system))
        lines += ["", "## System message of its training", ""]
        lines += [f"{fence}text", str(system), fence]
    if run:
        shown = {n: v for n, v in run.items() if v not in (None, "", False) and n != "data"}
        few = dict(list(shown.items())[:_MOST_SETTINGS])
        lines += ["", "## Settings", "", *_table("setting", "value", few)]
    if form == "peft":
        lines += ["", "## In vLLM", "", *_for_vllm(settings)]
    return "\n".join(lines) + "\n"


def _strength(settings: Mapping[str, Any]) -> dict[str, Any]:
    names = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "modules_to_save")
    names = (*names, "fine_tune_type", "num_layers", "lora_parameters")
    return {name: settings[name] for name in names if settings.get(name)}


def _table(name: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    return [
        f"| {name} | {value} |",
        "|---|---|",
        *(f"| {key} | {_cell(each)} |" for key, each in rows.items() if each is not None),
    ]


def _scores(scores: Mapping[str, Any]) -> list[str]:
    numbers = {
        when: {name: value for name, value in each.items() if isinstance(value, int | float)}
        for when, each in scores.items()
        if isinstance(each, Mapping)
    }
    columns = list(dict.fromkeys(name for each in numbers.values() for name in each))
    return [
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            " | ".join([f"| {when}", *(f"{each.get(c, math.nan):.4g}" for c in columns)]) + " |"
            for when, each in numbers.items()
        ),
    ]


def _for_vllm(settings: Mapping[str, Any]) -> list[str]:
    """What is in the way of its loader, which reads rank, alpha and targets alone."""
    obstacles = [name for name in _NOT_IN_VLLM if settings.get(name)]
    if settings.get("bias", "none") != "none":
        obstacles.append("bias")
    if obstacles:
        return [f"vLLM does not honour {', '.join(obstacles)}: merge the adapter for it."]
    rank = settings.get("r")
    return [f"`vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules NAME=FOLDER`"]


def _fence(text: str) -> str:
    """What encloses a text in Markdown: more backticks than stand together in it, at least 3."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text, 200).replace("|", "\\|")
