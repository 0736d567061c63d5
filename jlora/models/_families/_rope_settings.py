"""The settings of a config.json that say how positions are rotated, in both directions.

transformers 5 writes one record, ``rope_parameters``; earlier releases wrote ``rope_theta`` and
``rope_scaling`` beside the rest. Both are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._families._settings import Settings
from jlora.models._net._config import DecoderConfig, LinearRopeScaling, RopeScaling

_KINDS = ("default", "linear", "llama3")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotation for all layers."""

    kinds: tuple[str, ...] = _KINDS
    partial: bool = False  # the family may rotate a share of each head

    def read(self, settings: Settings) -> dict[str, Any]:
        """rope_theta, rope_scaling, rotary_share."""
        rope = {**settings.get("rope_scaling", {}), **settings.get("rope_parameters", {})}
        if _GLOBAL in rope or _LOCAL in rope:
            settings.problems.append("rope_parameters has a record for each kind of layer")
        share = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
        if share != 1.0 and not self.partial:
            settings.problems.append(f"partial_rotary_factor is {share}, but only 1.0 is supported")
        return {
            "rope_theta": rope.get("rope_theta", settings.get("rope_theta", 10000.0)),
            "rope_scaling": _scaling(settings, rope, self.kinds),
            "rotary_share": share,
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """rope_parameters."""
        rope = _record(config.rope_theta, config.rope_scaling)
        share = {"partial_rotary_factor": config.rotary_share} if self.partial else {}
        return {"rope_parameters": {**rope, **share}}


@dataclasses.dataclass(frozen=True)
class LocalAndGlobalRope:
    """One rotation for layers that see all, another for those with a window."""

    theta: float
    local_theta: float

    def read(self, settings: Settings) -> dict[str, Any]:
        """rope_theta, rope_scaling, local_rope_theta."""
        both = settings.get("rope_parameters", {})
        if both and _GLOBAL not in both and _LOCAL not in both:
            settings.problems.append(
                f"rope_parameters: expected a record for {_GLOBAL} and one for {_LOCAL}"
            )
        rope = {**(both.get(_GLOBAL) or {}), **settings.get("rope_scaling", {})}
        local = both.get(_LOCAL) or {}
        theta = settings.get("rope_theta", self.theta)
        local_theta = settings.get("rope_local_base_freq", self.local_theta)
        _scaling(settings, local, ("default",))
        for record in (rope, local):
            if (share := record.get("partial_rotary_factor", 1.0)) != 1.0:
                settings.problems.append(
                    f"partial_rotary_factor is {share}, but only 1.0 is supported"
                )
        return {
            "rope_theta": rope.get("rope_theta", theta),
            "rope_scaling": _scaling(settings, rope, _KINDS),
            "local_rope_theta": local.get("rope_theta", local_theta),
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """rope_parameters."""
        theta = config.local_rope_theta
        local = _record(config.rope_theta if theta is None else theta, None)
        return {
            "rope_parameters": {
                _GLOBAL: _record(config.rope_theta, config.rope_scaling),
                _LOCAL: local,
            }
        }


def _scaling(
    settings: Settings, rope: Mapping[str, Any], kinds: tuple[str, ...]
) -> RopeScaling | LinearRopeScaling | None:
    """The scaling in a record; what the decoder does not have is a problem."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        expected = ", ".join(("none", *(repr(name) for name in kinds[1:])))
        settings.problems.append(f"RoPE scaling of type {kind!r}: expected {expected}")
        return None
    if kind == "default":
        return None
    rope = {
        "original_max_position_embeddings": settings.get("max_position_embeddings"),
        **rope,
    }
    names = ("factor",)
    if kind == "llama3":
        names = (*names, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if rope.get(name) is None]
    if missing:
        settings.problems.append(f"RoPE scaling of type {kind!r} lacks {', '.join(missing)}")
        return None
    values = [rope[name] for name in names]
    return RopeScaling(*values) if kind == "llama3" else LinearRopeScaling(*values)


def _record(theta: float, scaling: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(scaling, LinearRopeScaling):
        rope |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, RopeScaling):
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return rope
