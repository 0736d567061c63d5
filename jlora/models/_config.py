"""What shape a decoder has: every number that the forward pass reads, whatever file it came from."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The dimensions and constants of a decoder.

    Raises:
        ValueError: when numbers contradict each other, all of them named at once.
    """

    vocabulary: int  # rows of the embedding
    width: int  # of the residual stream
    layers: int
    heads: int
    kv_heads: int  # each serves heads / kv_heads heads
    head_dim: int
    ffn: int  # width of the MLP
    norm_eps: float
    rope_base: float
    # Each frequency of the rotary embedding is divided by its factor; () divides by nothing.
    # Linear and llama3 scaling are such factors.
    rope_factors: tuple[float, ...] = ()
    tied: bool  # the head is the embedding
    max_length: int  # positions that the model was trained on

    def __post_init__(self):
        problems = [
            f"{name} is {getattr(self, name)!r}: expected a whole number of at least 1"
            for name in _COUNTS
            if not _counts(getattr(self, name))
        ]
        if not problems:
            if self.heads % self.kv_heads:
                problems.append(f"{self.heads} heads can't share {self.kv_heads} key-value heads")
            if self.head_dim % 2:
                problems.append(f"head_dim is {self.head_dim}: rotary positions need an even one")
            if self.rope_factors and len(self.rope_factors) != self.head_dim // 2:
                problems.append(
                    f"{len(self.rope_factors)} rope_factors: expected {self.head_dim // 2}, "
                    "half of head_dim"
                )
        for name, values in {
            "norm_eps": (self.norm_eps,),
            "rope_base": (self.rope_base,),
            "rope_factors": self.rope_factors,
        }.items():
            if not all(_positive(value) for value in values):
                problems.append(f"{name} is {getattr(self, name)!r}: expected above 0")
        if problems:
            raise ValueError("; ".join(problems))


_COUNTS = (
    "vocabulary",
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn",
    "max_length",
)


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0
