"""The settings of a config.json and the fields of a decoder: each part of them in both directions.

A part reads some settings into fields and writes the fields back, so that a family is a list of
parts. Reading gathers problems and never stops at the first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from jlora._words import one_line
from jlora.models._net._config import DecoderConfig
from jlora.models._net._encoder_config import EncoderConfig
from jlora.models._net._part_configs import Experts

_LARGEST = 2**31 - 1  # of a whole number: no model's sizes come near it
FIELDS = {  # of both kinds of models: what both have is of one type
    field.name: str(field.type)
    for config in (DecoderConfig, EncoderConfig)
    for field in dataclasses.fields(config)
}


class Settings:
    """The contents of a config.json, what is wrong with them, and which of them were asked for."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.problems: list[str] = []
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The setting, or the default when it is missing or null.

        One of another kind than the default is a problem.
        """
        self.asked.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        if expected := _unlike(value, default):
            self.problems.append(f"{name} is {one_line(repr(value), 60)}: expected {expected}")
            return default
        return value

    def number(self, name: str, *, needed: bool = True) -> Any:
        """The number (or bool) of this name; None, with a problem if it is needed."""
        return self._of_kind(name, needed, "a number", _is_number)

    def whole(self, name: str, *, needed: bool = True) -> Any:
        """The whole number of this name; None, with a problem if it is needed."""
        value = self._of_kind(name, needed, "a whole number", _is_whole)
        return None if value is None else int(value)

    def flag(self, name: str, *, needed: bool = True) -> Any:
        """True or False; None, with a problem if it is needed."""
        return self._of_kind(name, needed, "true or false", lambda value: isinstance(value, bool))

    def _of_kind(self, name: str, needed: bool, expected: str, fits: Any) -> Any:
        self.asked.add(name)
        value = self.values.get(name)
        if value is None:
            if needed:
                self.problems.append(f"{name} is missing")
        elif not fits(value):
            self.problems.append(f"{name} is {one_line(repr(value), 60)}: expected {expected}")
            return None
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    whole = _is_number(value) and not isinstance(value, bool) and value == int(value)
    return whole and abs(value) <= _LARGEST


def _unlike(value: Any, default: Any) -> str | None:
    """What was expected in place of the value, where it is not of the default's kind."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return None if _is_number(value) and not isinstance(value, bool) else "a number"
    for kind, expected in ((str, "a text"), (Mapping, "an object"), (list | tuple, "a list")):
        if isinstance(default, kind):
            return None if isinstance(value, kind) else expected
    return None


class Part(Protocol):
    """Some settings of a config.json and the fields that say the same."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """Fields of the decoder."""
        ...

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Settings of the config.json."""
        ...


@dataclasses.dataclass(frozen=True)
class Same:
    """Numbers and flags that both sides have, under two names."""

    names: Mapping[str, str]  # field -> setting
    needed: bool = True

    def read(self, settings: Settings) -> dict[str, Any]:
        """Each field, or a problem."""
        kinds = {"int": settings.whole, "bool": settings.flag}
        return {
            field: kinds.get(FIELDS[field].removesuffix(" | None"), settings.number)(
                name, needed=self.needed
            )
            for field, name in self.names.items()
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Each setting."""
        return {name: getattr(config, field) for field, name in self.names.items()}


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads; key-value heads and their width follow from the rest where they are not given."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """heads, kv_heads, head_dim."""
        heads = settings.whole("num_attention_heads")
        kv_heads = settings.whole("num_key_value_heads", needed=False)
        head_dim = settings.whole("head_dim", needed=False)
        width = settings.whole("hidden_size", needed=False)
        if head_dim is None and width and heads:
            head_dim = width // heads
        return {
            "heads": heads,
            "kv_heads": heads if kv_heads is None else kv_heads,
            "head_dim": head_dim,
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """All three, whatever follows from what."""
        names = Same({"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"})
        return {**names.write(config), "head_dim": config.head_dim}


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclasses.dataclass(frozen=True)
class Activation:
    """The MLP's activation, under the family's name for the setting."""

    setting: str = "hidden_act"
    tanh: str = "gelu_pytorch_tanh"  # the family's name for gelu by tanh
    meant: Mapping[str, str] = dataclasses.field(default_factory=dict)  # where not what they say

    def read(self, settings: Settings) -> dict[str, Any]:
        """activation."""
        name = settings.get(self.setting)
        known = {**_ACTIVATIONS, **self.meant}
        if not isinstance(name, str) or name not in known:
            settings.problems.append(
                f"{self.setting} is {name!r}, but only {', '.join(map(repr, known))} are supported"
            )
            return {}
        return {"activation": known[name]}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The setting."""
        written = {"gelu_tanh": self.tanh}
        return {self.setting: written.get(config.activation, config.activation)}


@dataclasses.dataclass(frozen=True)
class Biases:
    """Biases of attention's projections and of the MLP's, each by the setting that says so.

    None where the family has none.
    """

    qkv: str = "attention_bias"
    o: str | None = "attention_bias"
    mlp: str | None = None

    def _settings(self) -> dict[str, str]:
        names = {"qkv_bias": self.qkv, "o_bias": self.o, "mlp_bias": self.mlp}
        return {field: name for field, name in names.items() if name is not None}

    def read(self, settings: Settings) -> dict[str, Any]:
        """qkv_bias, o_bias, mlp_bias."""
        return {field: bool(settings.get(name, False)) for field, name in self._settings().items()}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The settings."""
        return {name: getattr(config, field) for field, name in self._settings().items()}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The experts; transformers 5 calls num_local_experts what earlier releases call num_experts.

    Layers without them are those of ``mlp_only_layers``, and all but every
    ``decoder_sparse_step``-th.
    """

    count: str = "num_experts"
    width: str = "moe_intermediate_size"
    shared: str | None = None  # the width of the gated expert that all tokens go to
    always_normalised: bool = False  # or norm_topk_prob says

    def read(self, settings: Settings) -> dict[str, Any]:
        """experts, expert_layers."""
        name = "num_local_experts" if "num_local_experts" in settings.values else self.count
        count, chosen = settings.whole(name), settings.whole("num_experts_per_tok")
        width = settings.whole(self.width)
        shared = None if self.shared is None else settings.whole(self.shared)
        sparse = self._sparse(settings)
        if None in (count, chosen, width):
            return {}
        if count == 0 or not any(sparse):
            return {"experts": None}
        normalised = self.always_normalised or settings.get("norm_topk_prob", False)
        gated = shared is not None
        experts = Experts(
            *(count, chosen, width), normalised, shared_width=shared, shared_gated=gated
        )
        return {"experts": experts, "expert_layers": None if all(sparse) else sparse}

    def _sparse(self, settings: Settings) -> tuple[bool, ...]:
        """Which layers have experts."""
        layers = settings.get("num_hidden_layers", 0)
        if self.always_normalised:
            return (True,) * layers
        step = settings.get("decoder_sparse_step", 1)
        without = settings.get("mlp_only_layers", [])
        return tuple(at not in without and (at + 1) % step == 0 for at in range(layers))

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The settings."""
        if (experts := config.experts) is None:
            return {self.count: 0}
        settings: dict[str, Any] = {
            self.count: experts.count,
            "num_experts_per_tok": experts.chosen,
            self.width: experts.width,
        }
        if self.shared is not None:
            settings[self.shared] = experts.shared_width
        if self.always_normalised:
            return settings
        without = [at for at, has in enumerate(config.expert_layers or ()) if not has]
        sparse = {"decoder_sparse_step": 1, "mlp_only_layers": without}
        return {**settings, "norm_topk_prob": experts.normalised, **sparse}
