"""The numbers and features that make a decoder: one record for every family."""

from __future__ import annotations

import dataclasses

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
NORMS = ("rms", "rms_plus_one", "layer")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies (Dubey et al. 2024, arXiv 2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """All rotary frequencies divided by one factor (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class RopeFactors:
    """Each rotary frequency divided by a number of its own, as GGUF files hold them."""

    divisors: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of gated MLPs in each layer, of which a router chooses a few for each token."""

    count: int
    chosen: int  # experts for each token
    width: int  # of one expert
    normalised: bool  # the chosen experts' weights sum to 1


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape and features of a decoder-only transformer; what is off costs nothing."""

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
    rope_scaling: RopeScaling | LinearRopeScaling | RopeFactors | None = None
    tied: bool = False  # the embedding is also the output head
    family: str = "llama"

    activation: str = "silu"  # one of ACTIVATIONS
    gated: bool = True  # the MLP is down(act(gate(x)) * up(x)), else down(act(up(x)))
    experts: Experts | None = None  # in place of the MLP
    fused: bool = False  # q, k and v are one projection, and so are gate and up
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    norm: str = "rms"  # one of NORMS; rms_plus_one multiplies by 1 + scale
    qk_norm: bool = False  # each head's query and key are normed before they are rotated
    post_norms: bool = False  # what attention and MLP give is normed before it is added

    learned_positions: bool = False  # added to the embedding, in place of the rotary ones
    rotary_share: float = 1.0  # of a head's dimensions are rotated, the first ones
    windows: tuple[int | None, ...] | None = None  # by layer: the last tokens that a token sees
    local_rope_theta: float | None = None  # of the layers with a window, where theirs differs

    query_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attention_cap: float | None = None  # scores become cap * tanh(scores / cap)
    logit_cap: float | None = None
    scaled_embedding: bool = False  # the embedding is multiplied by the root of the width

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        return (self.query_scalar or self.head_dim) ** -0.5

    def __post_init__(self):
        """Checks what can't be a decoder.

        Raises:
            ValueError: naming everything that is wrong.
        """
        problems = [
            f"{field.name} is {getattr(self, field.name)}: expected at least 1"
            for field in dataclasses.fields(self)
            if field.type == "int" and getattr(self, field.name) < 1
        ]
        if not problems and self.heads % self.kv_heads:
            problems.append(
                f"{self.heads} heads can't share {self.kv_heads} key-value heads evenly"
            )
        whole = self.rotary_share == 1.0 and not self.learned_positions
        if whole and self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}: expected even")
        if not 0 < self.rotary_share <= 1:
            problems.append(f"rotary_share is {self.rotary_share}: expected more than 0, at most 1")
        for name, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                problems.append(f"{name} is {getattr(self, name)!r}: expected {', '.join(known)}")
        if self.windows is not None:
            if len(self.windows) != self.layers:
                problems.append(f"{len(self.windows)} windows: expected {self.layers}, one a layer")
            if any(window is not None and window < 1 for window in self.windows):
                problems.append(f"windows are {self.windows}: expected each None or at least 1")
        if (experts := self.experts) is not None:
            if min(experts.count, experts.width) < 1:
                problems.append(f"{experts}: expected at least one expert of at least width 1")
            if not 1 <= experts.chosen <= experts.count:
                problems.append(f"{experts.chosen} of {experts.count} experts can't be chosen")
        if problems:
            raise ValueError(f"model configuration: {'; '.join(problems)}")
