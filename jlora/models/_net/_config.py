"""The numbers and features that make a decoder: one record for every family."""

from __future__ import annotations

import dataclasses
import math

from jlora.models._net._config_problems import problems_of_decoder
from jlora.models._net._part_configs import DeltaRule, Experts, Latent, LayerInputs, Sharpening
from jlora.models._net._rope_scalings import LongRopeScaling, Scaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape and features of a decoder-only transformer; what is off costs nothing.

    Raises:
        ValueError: when no decoder can be so: everything that is wrong is named.

    Sources: "LLaMA" (Touvron et al. 2023, arXiv 2302.13971), whose features are on unless others
    are asked for; rotary positions (Su et al. 2021, arXiv 2104.09864); shared key-value heads
    (Ainslie et al. 2023, arXiv 2305.13245); gated MLPs (Shazeer 2020, arXiv 2002.05202); windows
    (Jiang et al. 2023, arXiv 2310.06825); caps and norms behind ("Gemma 2", arXiv 2408.00118).

    Example:
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> config.score_scale  # 1 / sqrt(head_dim)
        0.5
    """

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
    rope_scaling: Scaling | None = None
    tied: bool = False  # the embedding is also the output head
    family: str = "llama"

    activation: str = "silu"  # one of ACTIVATIONS
    gated: bool = True  # the MLP is down(act(gate(x)) * up(x)), else down(act(up(x)))
    experts: Experts | None = None  # in place of the MLP
    expert_layers: tuple[bool, ...] | None = None  # by layer, where some keep the MLP
    linear: DeltaRule | None = None  # in place of attention over keys and values
    linear_layers: tuple[bool, ...] | None = None  # by layer, where some keep that
    latent: Latent | None = None  # what keys and values are made of, in place of the input
    fused_qkv: bool = False  # q, k and v are one projection
    fused_gate_up: bool = False  # so are gate and up
    qkv_bias: bool = False
    o_bias: bool = False
    gated_attention: bool = False  # what a head gathers is gated by what lies beside its query
    sinks: bool = False  # each head gives a learned share of its attention to nothing
    mlp_bias: bool = False
    # By layer: the share of the gate's values that are cut off, as if they were normal; 0: none.
    sparsity: tuple[float, ...] | None = None

    norm: str = "rms"  # one of NORMS; plus_one multiplies by 1 + scale
    qk_norm: bool = False  # each head's query and key are normed before they are rotated
    qk_norm_joint: bool = False  # over all heads at once
    qk_norm_after: bool = False  # after they are rotated
    qk_rms: bool = False  # rotated layers divide both by their root mean square, once rotated
    value_rms: bool = False  # each head's value is divided by its root mean square
    pre_norms: bool = True  # what attention and MLP get is normed
    post_norms: bool = False  # what attention and MLP give is normed before it is added
    parallel: bool = False  # attention and MLP both read the layer's input, by one norm
    streams: int | None = None  # hidden states side by side, of which a layer computes one (AltUp)
    laurel_rank: int | None = None  # of a product that is added beside attention (LAuReL)
    layer_inputs: LayerInputs | None = None  # what each layer gets of the tokens themselves

    # The last layers, which read the keys and values of the last one before them that sees as far.
    borrowing: int | None = None
    learned_positions: bool = False  # added to the embedding, in place of the rotary ones
    rotary_share: float = 1.0  # of a head's dimensions are rotated, the first ones
    interleaved: bool = False  # neighbours are rotated together, not the two halves
    rotated: tuple[bool, ...] | None = None  # by layer, where some are not
    windows: tuple[int | None, ...] | None = None  # by layer: the last tokens that a token sees
    # By layer: a text is cut into chunks of so many tokens, each of which sees its own chunk.
    chunks: tuple[int | None, ...] | None = None
    sharpening: Sharpening | None = None  # of queries in layers that are not rotated
    local_rope_theta: float | None = None  # of the layers with a window, where theirs differs

    query_scalar: int | None = None  # scores are divided by its root; None: head_dim
    attention_scale: float | None = None  # scores are multiplied by it instead
    # With m of it, scores are also multiplied by (0.1 m log(factor) + 1)^2, of the RoPE scaling.
    stretch_sharpness: float = 0.0
    attention_cap: float | None = None  # scores become cap * tanh(scores / cap)
    logit_cap: float | None = None
    logit_scale: float = 1.0  # logits are multiplied by it, before the cap
    scaled_embedding: bool = False  # the embedding is multiplied by the root of the width
    embedding_scale: float = 1.0  # the embedding is multiplied by it
    residual_scale: float = 1.0  # what attention and MLP give is multiplied by it
    labels: tuple[str, ...] = ()  # that a head has scores for, in the place of the vocabulary's

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        if self.attention_scale is not None:
            return self.attention_scale
        scale = (self.query_scalar or self.head_dim) ** -0.5
        factor = getattr(self.rope_scaling, "factor", 1.0)
        if factor > 1 and self.stretch_sharpness:
            scale *= (0.1 * self.stretch_sharpness * math.log(factor) + 1) ** 2
        return scale

    @property
    def turned(self) -> int:
        """How many of a head's dimensions are rotated."""
        if self.latent is not None:
            return self.latent.rotated
        return int(self.head_dim * self.rotary_share)

    @property
    def value_dim(self) -> int:
        """The dimensions of a head's value."""
        return self.head_dim if self.latent is None else self.latent.value

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        return self.max_length

    @property
    def length_that_turns(self) -> int | None:
        """The longest text of which no position is turned otherwise in a longer one, if any is."""
        scaling = self.rope_scaling
        return scaling.original_max_position if isinstance(scaling, LongRopeScaling) else None

    def __post_init__(self):
        """Checks what can't be a decoder.

        Raises:
            ValueError: naming everything that is wrong.
        """
        if problems := problems_of_decoder(self):
            raise ValueError(f"model configuration: {'; '.join(problems)}")
