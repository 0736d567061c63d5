"""The settings that a config.json would have, out of the header of a GGUF file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora import _words
from jlora.models import _families
from jlora.models._families import FAMILIES
from jlora.models._families._family import Family
from jlora.models._families._gguf_route import ENTRIES, PATTERN, Gguf
from jlora.models._families._settings import Biases, Heads
from jlora.models._files import _gguf_rope
from jlora.models._net._config import DecoderConfig

# Of which the decoder has one value.
_ONLY = {"attention.causal": True, "rope.scaling.yarn_ext_factor": 1.0}
# Entries that say nothing of the decoder, or nothing more.
_ASIDE = frozenset({"rope.scaling.finetuned", "tensor_data_layout", _gguf_rope.ORIGINAL})
_BIASED = {"qkv": ("attn_q", "attn_k", "attn_v", "attn_qkv"), "o": ("attn_output",)}
_BIASED_MLP = ("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp")


def route_of(fields: Mapping[str, Any], where: str) -> tuple[str, Family, Gguf]:
    """The family of a file, by its name here, and how llama.cpp's files hold it.

    Raises:
        ValueError: when none has the architecture.
    """
    architecture = fields.get("general.architecture")
    routes = [
        (name, family, family.gguf)
        for name, family in FAMILIES.items()
        if family.gguf is not None and family.gguf.architecture == architecture
    ]
    if not routes:
        known = dict.fromkeys(
            family.gguf.architecture for family in FAMILIES.values() if family.gguf
        )
        raise ValueError(
            f"{where}: the architecture is {_short(architecture)}, but from GGUF jlora.models "
            f"reads {', '.join(known)}: load the model's Hugging Face folder"
        )

    def entry(name: str) -> Any:
        return fields.get(f"{architecture}.{name}")

    told = [route for route in routes if (ours := route[2].only_where) and ours(entry)]
    return (told or [route for route in routes if route[2].only_where is None])[0]


class Header:
    """The entries of one architecture, and which of them were asked for."""

    def __init__(self, fields: Mapping[str, Any], architecture: str):
        self._fields, self._prefix = fields, f"{architecture}."
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The entry; a list that has the same for each layer is that one, but for windows."""
        self.asked.add(name)
        value = self._fields.get(self._prefix + name)
        if value is None:
            return default
        if isinstance(value, list):
            value = [_as_written(each) for each in value]
            same = value and value.count(value[0]) == len(value)
            return value[0] if same and name != PATTERN else value
        return _as_written(value)

    def unknown(self) -> list[str]:
        """What nobody asked for, and says something."""
        known = {self._prefix + name for name in self.asked | _ASIDE}
        return [
            f"{name} is {_short(_as_written(self._fields[name]))}: jlora.models does not know this "
            "entry"
            for name in self._fields
            if name.startswith(self._prefix) and name not in known and self._fields[name]
        ]


def config_of(fields: Mapping[str, Any], tensors: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder's configuration.

    Raises:
        ValueError: naming every entry that is missing, of the wrong kind or unknown.
    """
    name, family, route = route_of(fields, where)
    header = Header(fields, route.architecture)
    try:
        settings, problems = _settings(header, family, route, fields, tensors)
        problems += header.unknown()
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{where}: the header: an entry is of the wrong kind ({error})") from None
    if problems:
        raise ValueError(f"{where}: the header:{_words.first_few(problems, 12)}")
    config = _families.from_huggingface({**settings, "model_type": name}, f"{where}: the header")
    if _gguf_rope.TENSOR not in tensors:
        return config
    try:
        scaling = _gguf_rope.of_tensor(tensors[_gguf_rope.TENSOR], config)
        return dataclasses.replace(config, rope_scaling=scaling)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _settings(
    header: Header,
    family: Family,
    route: Gguf,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """The settings, and what is wrong with the header beside them."""
    names = {**ENTRIES, **route.entries}
    given = dict.fromkeys(setting for setting in names.values() if setting is not None)
    for entry, setting in names.items():
        if setting is not None and (value := header.get(entry)) is not None:
            given[setting] = value
    header.asked |= names.keys()
    tokens = fields.get("tokenizer.ggml.tokens", ())
    if given["vocab_size"] is None:
        given["vocab_size"] = len(tokens) if isinstance(tokens, list) else 0
    if any(isinstance(part, Heads) for part in family.parts):
        _fill_in_heads(given)
    problems = _gguf_rope.read(header, family, given, tensors)
    if "sliding_window" in given:
        given["sliding_window"] = given["sliding_window"] or None
    if "layer_types" in given:
        given["layer_types"] = _layer_types(given["layer_types"], given.get("num_hidden_layers"))
    missing = route.missing(given)
    given |= {name: value for name, value in missing.items() if given.get(name) is None}
    problems += [
        f"there is no {route.architecture}.{entry}"
        for entry, setting in names.items()
        if setting is not None and given.get(setting) is None and setting not in missing
    ]
    head_dim, width = given.get("head_dim"), "attention.value_length"
    only = _ONLY if head_dim is None or width in names else {**_ONLY, width: head_dim}
    problems += [
        f"{entry} is {_short(value)}, but only {known!r} is supported"
        for entry, known in only.items()
        if (value := header.get(entry, known)) != known
    ]
    for part in family.parts:
        if isinstance(part, Biases):
            given |= _biases(part, tensors)
    given = {name: value for name, value in given.items() if not name.startswith("_")}
    return {**given, "tie_word_embeddings": "output.weight" not in tensors}, problems


def _fill_in_heads(given: dict[str, Any]) -> None:
    heads, width = given.get("num_attention_heads"), given.get("hidden_size")
    if given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = heads
    if given.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int):
        given["head_dim"] = width // heads if heads else None


_MOST_LAYERS = 10_000


def _layer_types(pattern: Any, layers: Any) -> list[str] | None:
    """The kinds of the layers, as a config.json has them, or None where the family's are meant."""
    if pattern is None:
        return None
    if type(pattern) is int and isinstance(layers, int):
        slides = [
            pattern == 0 or at % pattern < pattern - 1 for at in range(min(layers, _MOST_LAYERS))
        ]
    else:
        slides = pattern if isinstance(pattern, list) else [pattern]
    return ["sliding_attention" if each else "full_attention" for each in slides]


def _biases(part: Biases, tensors: Mapping[str, Any]) -> dict[str, bool]:
    """Each setting is true where a bias that it speaks of is there, in whichever layer."""
    biases = {name.split(".", 2)[-1] for name in tensors if name.endswith(".bias")}
    modules = {part.qkv: [*_BIASED["qkv"]]}
    if part.o is not None:
        modules.setdefault(part.o, []).extend(_BIASED["o"])
    if part.mlp is not None:
        modules.setdefault(part.mlp, []).extend(_BIASED_MLP)
    return {
        setting: any(f"{each}.bias" in biases for each in names)
        for setting, names in modules.items()
    }


def _as_written(value: Any) -> Any:
    """A number of 32 bits as the shortest decimal that is stored so, which it was before."""
    if not isinstance(value, float) or value != float(np.float32(value)):
        return value
    return float(str(np.float32(value)))


def _short(value: Any) -> str:
    return _words.one_line(repr(value), 60)
