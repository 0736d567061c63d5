"""The numbers that make a decoder: one record for every family."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies (Dubey et al. 2024, arXiv 2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int  # positions that the model was trained on
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False  # the embedding is also the output head
    family: str = "llama"

    def __post_init__(self):
        sizes = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.type == "int"
        }
        if bad := [f"{name} is {size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"model configuration: {', '.join(bad)}: expected at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model configuration: {self.heads} heads can't share {self.kv_heads} key-value "
                "heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"model configuration: head_dim is {self.head_dim}: expected even")
