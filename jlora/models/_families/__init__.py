"""The families of models that jlora knows, and their settings: config.json in, config.json out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora import _words
from jlora.models._families._bookkeeping import BOOKKEEPING
from jlora.models._families._checks import mistyped, two_ropes, unknown_in_ropes
from jlora.models._families._family import Family as Family
from jlora.models._families._gemma2 import GEMMA2
from jlora.models._families._gemma3 import GEMMA3_TEXT
from jlora.models._families._gpt2 import GPT2
from jlora.models._families._llama import LLAMA
from jlora.models._families._mistral import MISTRAL
from jlora.models._families._phi3 import PHI3
from jlora.models._families._qwen2 import QWEN2
from jlora.models._families._qwen3 import QWEN3
from jlora.models._families._qwen3_moe import QWEN3_MOE
from jlora.models._families._settings import Settings
from jlora.models._net._config import DecoderConfig

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3_TEXT,
    "phi3": PHI3,
    "gpt2": GPT2,
}


def family_of(architecture: Any, where: str) -> Family:
    """The family by the name that a file gives it.

    Raises:
        ValueError: when there is none of this name.
    """
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ValueError(
            f"{where}: the architecture is {architecture!r}, but jlora.models knows "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def from_huggingface(settings: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder's configuration from the contents of a config.json.

    Every setting is honoured, is one that says nothing of the decoder, or is an error.

    Raises:
        ValueError: naming every setting that is missing, of the wrong kind, or that the decoder
            does not have.
    """
    family = family_of(settings.get("model_type"), where)
    given = Settings({**family.defaults, **settings})
    for name, values in family.limits.items():
        if name in settings and settings[name] not in values:
            given.problems.append(
                f"{name} is {_short(settings[name])}, but only {values[0]!r} is supported"
            )
    fields = dict(family.features)
    if too_many := _too_many(given):
        raise ValueError(f"{where}: {too_many[0]}")
    given.problems += _read_parts(family, given, fields)
    given.problems += two_ropes(settings)
    given.problems += unknown_in_ropes(settings)
    given.problems += [
        f"{name} is {_short(value)}: jlora.models does not know this setting of a "
        f"{settings['model_type']} model. Where it changes nothing, remove it"
        for name, value in settings.items()
        if name not in _known(family, given) and _says_something(value)
    ]
    given.problems += [] if given.problems else mistyped(fields)
    if given.problems:
        problems = list(dict.fromkeys(given.problems))
        listed = problems[0] if len(problems) == 1 else _words.first_few(problems, 12)
        raise ValueError(f"{where}: {listed}")
    fields = {name: _as_float(name, value) for name, value in fields.items()}
    try:
        return DecoderConfig(**fields, family=settings["model_type"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


_FLOATS = {f.name for f in dataclasses.fields(DecoderConfig) if str(f.type).startswith("float")}


def _as_float(name: str, value: Any) -> Any:
    """A whole number in the place of another, which JAX may find too large for an integer."""
    return float(value) if name in _FLOATS and value is not None else value


def _read_parts(family: Family, given: Settings, fields: dict[str, Any]) -> list[str]:
    """Fills in the fields; what no part could read."""
    problems = []
    for part in family.parts:
        before = set(given.asked)
        try:
            fields |= part.read(given)
        except (TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
            names = sorted(given.asked - before) or sorted(given.asked)
            problems.append(f"{', '.join(names)}: of the wrong kind ({error})")
    return problems


def _known(family: Family, given: Settings) -> set[str]:
    """The settings that a config.json of the family may have with any value."""
    honoured = given.asked | family.defaults.keys() | family.limits.keys()
    return honoured | family.settings_aside | BOOKKEEPING


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and value not in ({}, [], "")


_MOST_LAYERS = 10_000


def _too_many(given: Settings) -> list[str]:
    """A number of layers that only a damaged file has: nothing is made of so many."""
    counts = {name: given.values.get(name) for name in ("num_hidden_layers", "n_layer")}
    return [
        f"{name} is {_short(count)}: expected at most {_MOST_LAYERS}"
        for name, count in counts.items()
        if isinstance(count, int | float) and not count <= _MOST_LAYERS
    ]


def _short(value: Any) -> str:
    return _words.one_line(repr(value), 60)


def to_huggingface(config: DecoderConfig) -> dict[str, Any]:
    """The settings of a config.json from which transformers makes the same model.

    Raises:
        ValueError: when the family has no setting for something that the decoder has.
    """
    family = family_of(config.family, "this configuration")
    settings = {"architectures": [family.architecture], "model_type": config.family}
    for part in family.parts:
        settings |= part.write(config)
    back = from_huggingface(settings, "the settings written")
    differing = [
        f"{field.name} is {getattr(config, field.name)!r}, a {config.family} model's would be "
        f"{getattr(back, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(back, field.name) != getattr(config, field.name)
    ]
    if differing:
        raise ValueError(f"no config.json can say this: {'; '.join(differing)}")
    return settings
