"""The settings of a config.json that say how positions are rotated, in both directions.

transformers 5 writes one record, ``rope_parameters``; earlier releases wrote ``rope_theta`` and
``rope_scaling`` beside the rest. Both are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._families._rope_scaling_settings import KINDS, record_of, scaling_in
from jlora.models._families._settings import Settings
from jlora.models._net._config import DecoderConfig

_ALL = tuple(KINDS)
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
SHARPNESS = "mscale_all_dim"
_ORIGINAL = "original_max_position_embeddings"


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotation for all layers."""

    kinds: tuple[str, ...] = _ALL
    partial: bool = False  # the family may rotate a share of each head
    theta: float = 10000.0  # where none is given
    # The record where none is given.
    missing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Older names of kinds.
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: bool = False  # the original length stands beside the record, not in it
    share: float = 1.0  # of each head, where none is given

    def read(self, settings: Settings) -> dict[str, Any]:
        """rope_theta, rope_scaling, rotary_share."""
        older, newer = settings.get("rope_scaling", {}), settings.get("rope_parameters", {})
        rope = {**older, **newer} or dict(self.missing)
        if _GLOBAL in rope or _LOCAL in rope:
            settings.problems.append("rope_parameters has a record for each kind of layer")
        share = settings.get("partial_rotary_factor", self.share)
        share = rope.get("partial_rotary_factor", share)
        if share != 1.0 and not self.partial:
            settings.problems.append(f"partial_rotary_factor is {share}, but only 1.0 is supported")
        kind = rope.get("rope_type", rope.get("type", "default"))
        rope["rope_type"] = self.renamed.get(kind, kind)
        if (original := settings.get(_ORIGINAL)) is not None:
            rope[_ORIGINAL] = original  # as transformers has it: this one counts
        return {
            "rope_theta": rope.get("rope_theta", settings.get("rope_theta", self.theta)),
            "rope_scaling": scaling_in(settings, rope, self.kinds),
            "rotary_share": share,
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """rope_parameters, and the original length where it stands beside them."""
        rope = record_of(config.rope_theta, config.rope_scaling)
        beside = {}
        if self.beside and _ORIGINAL in rope:
            beside[_ORIGINAL] = rope.pop(_ORIGINAL)
        share = {"partial_rotary_factor": config.rotary_share} if self.partial else {}
        return {"rope_parameters": {**rope, **share}, **beside}


@dataclasses.dataclass(frozen=True)
class SharperRope(Rope):
    """One rotation for all layers, whose stretching makes the scores sharper too."""

    kinds: tuple[str, ...] = ("linear", "llama3", "yarn", "dynamic")  # those with a factor

    def read(self, settings: Settings) -> dict[str, Any]:
        """rope_theta, rope_scaling, rotary_share, stretch_sharpness."""
        fields = super().read(settings)
        record = {**settings.get("rope_scaling", {}), **settings.get("rope_parameters", {})}
        stretched = fields["rope_scaling"] is not None
        sharpness = (record.get(SHARPNESS) or 0.0) if stretched else 0.0
        return {**fields, "stretch_sharpness": sharpness}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """rope_parameters."""
        settings = super().write(config)
        if config.stretch_sharpness:
            settings["rope_parameters"][SHARPNESS] = config.stretch_sharpness
        return settings


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
        scaling_in(settings, local, ())
        if not rope.get("truncate", True):  # transformers looks for it outside the two records
            settings.problems.append("truncate is false, but only true is supported")
        for record in (rope, local):
            if (share := record.get("partial_rotary_factor", 1.0)) != 1.0:
                settings.problems.append(
                    f"partial_rotary_factor is {share}, but only 1.0 is supported"
                )
        return {
            "rope_theta": rope.get("rope_theta", theta),
            "rope_scaling": scaling_in(settings, rope, _ALL),
            "local_rope_theta": local.get("rope_theta", local_theta),
        }

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """rope_parameters."""
        theta = config.local_rope_theta
        local = record_of(config.rope_theta if theta is None else theta, None)
        return {
            "rope_parameters": {
                _GLOBAL: record_of(config.rope_theta, config.rope_scaling),
                _LOCAL: local,
            }
        }
