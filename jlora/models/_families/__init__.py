"""The families of models that jlora knows, and their settings: config.json in, config.json out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora import _words
from jlora.models._families._arcee import ARCEE
from jlora.models._families._bert import BERT
from jlora.models._families._bookkeeping import BOOKKEEPING
from jlora.models._families._checks import mistyped, two_ropes, unknown_in_ropes
from jlora.models._families._cohere import COHERE
from jlora.models._families._cohere2 import COHERE2
from jlora.models._families._deepseek_v2 import DEEPSEEK_V2
from jlora.models._families._deepseek_v3 import DEEPSEEK_V3
from jlora.models._families._ernie4_5 import ERNIE4_5
from jlora.models._families._exaone4 import EXAONE4
from jlora.models._families._family import Family as Family
from jlora.models._families._gemma import GEMMA
from jlora.models._families._gemma2 import GEMMA2
from jlora.models._families._gemma3 import GEMMA3, GEMMA3_TEXT
from jlora.models._families._gemma3n import GEMMA3N, GEMMA3N_TEXT
from jlora.models._families._glm4 import GLM4
from jlora.models._families._gpt2 import GPT2
from jlora.models._families._gpt_oss import GPT_OSS
from jlora.models._families._granite import GRANITE
from jlora.models._families._granitemoe import GRANITEMOE
from jlora.models._families._hunyuan import HUNYUAN_V1_DENSE
from jlora.models._families._labels import classifying
from jlora.models._families._llama import LLAMA
from jlora.models._families._llama4 import LLAMA4, LLAMA4_TEXT
from jlora.models._families._ministral import MINISTRAL
from jlora.models._families._mistral import MISTRAL
from jlora.models._families._mixtral import MIXTRAL
from jlora.models._families._nemotron import NEMOTRON
from jlora.models._families._olmo2 import OLMO2
from jlora.models._families._olmo3 import OLMO3
from jlora.models._families._phi3 import PHI3
from jlora.models._families._quantisation_settings import problems_of
from jlora.models._families._qwen2 import QWEN2
from jlora.models._families._qwen2_moe import QWEN2_MOE
from jlora.models._families._qwen3 import QWEN3
from jlora.models._families._qwen3_moe import QWEN3_MOE
from jlora.models._families._qwen3_next import QWEN3_NEXT
from jlora.models._families._roberta import ROBERTA
from jlora.models._families._seed_oss import SEED_OSS
from jlora.models._families._settings import FIELDS, Settings
from jlora.models._families._smollm3 import SMOLLM3
from jlora.models._families._starcoder2 import STARCODER2
from jlora.models._net._encoder_config import Config

FAMILIES: dict[str, Family] = {
    name: classifying(family)
    for name, family in {
        "llama": LLAMA,
        "llama4_text": LLAMA4_TEXT,
        "llama4": LLAMA4,
        "mistral": MISTRAL,
        "ministral": MINISTRAL,
        "mixtral": MIXTRAL,
        "qwen2": QWEN2,
        "qwen2_moe": QWEN2_MOE,
        "qwen3": QWEN3,
        "qwen3_moe": QWEN3_MOE,
        "qwen3_next": QWEN3_NEXT,
        "gemma": GEMMA,
        "gemma2": GEMMA2,
        "gemma3_text": GEMMA3_TEXT,
        "gemma3": GEMMA3,
        "gemma3n_text": GEMMA3N_TEXT,
        "gemma3n": GEMMA3N,
        "phi3": PHI3,
        "olmo2": OLMO2,
        "olmo3": OLMO3,
        "granite": GRANITE,
        "granitemoe": GRANITEMOE,
        "smollm3": SMOLLM3,
        "starcoder2": STARCODER2,
        "glm4": GLM4,
        "cohere": COHERE,
        "cohere2": COHERE2,
        "exaone4": EXAONE4,
        "seed_oss": SEED_OSS,
        "ernie4_5": ERNIE4_5,
        "hunyuan_v1_dense": HUNYUAN_V1_DENSE,
        "nemotron": NEMOTRON,
        "arcee": ARCEE,
        "gpt2": GPT2,
        "gpt_oss": GPT_OSS,
        "deepseek_v2": DEEPSEEK_V2,
        "deepseek_v3": DEEPSEEK_V3,
    }.items()
}
ENCODERS: dict[str, Family] = {
    name: classifying(family)
    for name, family in {
        "bert": BERT,
        "roberta": ROBERTA,
    }.items()
}


def family_of(architecture: Any, where: str) -> Family:
    """The family by the name that a file gives it.

    Raises:
        ValueError: when there is none of this name.
    """
    known = {**FAMILIES, **ENCODERS}
    if not isinstance(architecture, str) or architecture not in known:
        raise ValueError(
            f"{where}: the architecture is {architecture!r}, but jlora.models knows "
            f"{', '.join(known)}"
        )
    return known[architecture]


def from_huggingface(settings: Mapping[str, Any], where: str) -> Any:
    """The `DecoderConfig` or `EncoderConfig` that the contents of a config.json say.

    Every setting is honoured, is one that says nothing of the model, or is an error.

    Args:
        settings: what ``config.json`` says.
        where: the file, for messages.

    Raises:
        ValueError: naming every setting that is missing, of the wrong kind, or that the model
            does not have.

    Example:
        >>> from jlora import models
        >>> settings = {
        ...     "model_type": "llama", "vocab_size": 3, "hidden_size": 8, "num_hidden_layers": 1,
        ...     "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 64,
        ...     "rms_norm_eps": 1e-5, "hidden_act": "silu",
        ... }
        >>> models.from_huggingface(settings, "config.json").head_dim
        4
    """
    family = family_of(settings.get("model_type"), where)
    settings = family.flat(settings)
    given = Settings({**family.defaults, **settings})
    given.problems += problems_of(settings.get("quantization_config"))
    for name, values in family.only.items():
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
        return family.config(**fields, family=settings["model_type"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


_FLOATS = {name for name, kind in FIELDS.items() if kind.startswith("float")}


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
    honoured = given.asked | family.defaults.keys() | family.only.keys()
    return honoured | family.settings_aside | BOOKKEEPING | {"quantization_config"}


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


def to_huggingface(config: Config) -> dict[str, Any]:
    """The settings of a config.json from which transformers makes the same model.

    Args:
        config: of the model; its ``family`` says in whose words.

    Raises:
        ValueError: when the family has no setting for something that the model has.

    Example:
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> settings = models.to_huggingface(config)
        >>> settings["model_type"], settings["hidden_size"]
        ('llama', 8)
        >>> models.from_huggingface(settings, "config.json") == config
        True
    """
    family = family_of(config.family, "this configuration")
    settings = {"model_type": config.family}
    for part in family.parts:
        settings |= part.write(config)  # pyright: ignore[reportArgumentType]
    settings = family.unflat(settings)
    back = from_huggingface(settings, "the settings written")
    differing = [
        f"{field.name} is {getattr(config, field.name)!r}, a {config.family} model's would be "
        f"{getattr(back, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(back, field.name) != getattr(config, field.name)
        and field.name not in family.by_tensors
    ]
    if differing:
        raise ValueError(f"no config.json can say this: {'; '.join(differing)}")
    return settings
