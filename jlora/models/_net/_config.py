"""The numbers and features that make a decoder: one record for every family."""

from __future__ import annotations

import dataclasses
import math

from jlora.models._net._rope_scalings import LongRopeScaling, Scaling

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
NORMS = ("rms", "rms_plus_one", "layer", "layer_plus_one", "layer_no_bias")


@dataclasses.dataclass(frozen=True)
class ClampedGate:
    """gate * sigmoid(sharpness * gate) * (up + 1), gate and up held within a limit (gpt-oss).

    Example:
        >>> from jlora import models
        >>> models.ClampedGate(sharpness=1.702, limit=7.0)  # gpt-oss
        ClampedGate(sharpness=1.702, limit=7.0)
    """

    sharpness: float
    limit: float


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of gated MLPs in each layer, of which a router chooses a few for each token.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", arXiv 1701.06538.

    Example:
        >>> from jlora import models
        >>> models.Experts(count=8, chosen=2, width=16, normalised=True).chosen
        2
    """

    count: int
    chosen: int  # experts for each token
    width: int  # of one expert
    normalised: bool  # the chosen experts' weights sum to 1
    biases: bool = False  # of the router and of each expert's products
    interleaved: bool = False  # gate and up take turns in the columns of their product
    clamped: ClampedGate | None = None  # in place of act(gate) * up
    shared_width: int | None = None  # of one more expert, to which all tokens go
    shared_gated: bool = False  # what that one gives is multiplied by sigmoid(x W)
    sigmoid: bool = False  # an expert's score is sigmoid(x W), not its share in a softmax
    corrected: bool = False  # a number of each expert's own is added to it, for the choice alone
    groups: int = 1  # of experts that stand side by side; chosen are those of the best groups
    chosen_groups: int = 1
    best_of_group: int = 1  # a group's score is the sum of so many of its experts' best ones
    scale: float = 1.0  # the chosen experts' weights are multiplied by it
    wide_router: bool = False  # the router's product is computed in float32
    weighted_input: bool = False  # the weights multiply what experts read, not what they give

    def problems(self) -> list[str]:
        """What can't be."""
        problems = []
        if min(self.count, self.width) < 1:
            problems.append(f"{self}: expected at least one expert of at least width 1")
        if not 1 <= self.chosen <= self.count:
            problems.append(f"{self.chosen} of {self.count} experts can't be chosen")
        if self.groups == self.chosen_groups == 1 or problems:
            return problems
        if self.groups < 1 or self.count % self.groups:
            return [f"{self.count} experts can't stand in {self.groups} groups of one size"]
        if not 1 <= self.chosen_groups <= self.groups:
            problems.append(f"{self.chosen_groups} of {self.groups} groups can't be chosen")
        size = self.count // self.groups
        if self.chosen > self.chosen_groups * size:
            problems.append(
                f"{self.chosen_groups} groups of {size} experts hold no {self.chosen} to choose"
            )
        if self.best_of_group > size:
            problems.append(f"a group of {size} experts has no {self.best_of_group} best ones")
        return problems


@dataclasses.dataclass(frozen=True)
class Latent:
    """Keys and values of all heads out of one short vector for each token.

    Beside it stands one rotated key, which all heads share.

    Source: "DeepSeek-V2", DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.

    Example:
        >>> from jlora import models
        >>> models.Latent(width=512, query_width=1536, plain=128, rotated=64, value=128).rotated
        64
    """

    width: int  # of the short vector
    query_width: int | None  # of another, of which the queries are made; None: of the input
    plain: int  # dimensions of each head's query and key that are not rotated
    rotated: int  # and those behind them that are
    value: int  # dimensions of each head's value


@dataclasses.dataclass(frozen=True)
class DeltaRule:
    """Attention by a matrix that each head keeps of the text, in place of keys and values.

    Source: Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464.

    Example:
        >>> from jlora import models
        >>> models.DeltaRule(key_heads=16, value_heads=32, key_dim=128, value_dim=128).taps
        4
    """

    key_heads: int
    value_heads: int  # each head of keys and queries serves several
    key_dim: int
    value_dim: int
    taps: int = 4  # tokens over which a channel is summed before

    @property
    def keys(self) -> int:
        """The dimensions of all keys together."""
        return self.key_heads * self.key_dim

    @property
    def channels(self) -> int:
        """The dimensions of all queries, keys and values together."""
        return 2 * self.keys + self.value_heads * self.value_dim

    def problems(self) -> list[str]:
        """What can't be."""
        if min(dataclasses.astuple(self)) < 1 or self.value_heads % self.key_heads:
            return [
                f"{self}: expected numbers of at least 1, and heads of values that share those of "
                "keys evenly"
            ]
        return []


@dataclasses.dataclass(frozen=True)
class Sharpening:
    """1 + by * log(1 + floor((position + 1) / every)), by which a long text's queries are longer.

    Source: Nakanishi 2025, "Scalable-Softmax Is Superior for Attention", arXiv 2501.19399.

    Example:
        >>> from jlora import models
        >>> models.Sharpening(by=0.1, every=8192)  # Llama 4
        Sharpening(by=0.1, every=8192)
    """

    by: float
    every: int  # tokens


@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """A short vector for each layer, of each token's own and of its embedding ("Gemma 3n", 2025).

    Example:
        >>> from jlora import models
        >>> models.LayerInputs(vocabulary=262144, width=256)  # Gemma 3n
        LayerInputs(vocabulary=262144, width=256)
    """

    vocabulary: int  # tokens that have vectors of their own; all others have the first one's
    width: int  # of one layer's vector


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
        problems = [
            f"{field.name} is {getattr(self, field.name)}: expected at least 1"
            for field in dataclasses.fields(self)
            if field.type == "int" and getattr(self, field.name) < 1
        ]
        if not problems and self.heads % self.kv_heads:
            problems.append(
                f"{self.heads} heads can't share {self.kv_heads} key-value heads evenly"
            )
        whole = self.rotary_share == 1.0 and not self.learned_positions and self.latent is None
        if whole and self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}: expected even")
        if not 0 < self.rotary_share <= 1:
            problems.append(f"rotary_share is {self.rotary_share}: expected more than 0, at most 1")
        if isinstance(self.rope_scaling, LongRopeScaling):
            pairs = -(-self.turned // 2)
            for name in ("short", "long"):
                if (count := len(getattr(self.rope_scaling, name))) != pairs:
                    problems.append(
                        f"{name}_factor of the RoPE scaling has {count} entries: expected {pairs}"
                    )
        for name, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                problems.append(f"{name} is {getattr(self, name)!r}: expected {', '.join(known)}")
        for name in ("windows", "chunks"):
            each = getattr(self, name) or (None,) * self.layers
            if len(each) != self.layers:
                problems.append(f"{len(each)} {name}: expected {self.layers}, one a layer")
            if any(tokens is not None and tokens < 1 for tokens in each):
                problems.append(f"{name} are {each}: expected each None or at least 1")
        if self.windows is not None and self.chunks is not None:
            problems.append("windows and chunks exclude each other")
        for name in ("rotated", "expert_layers", "linear_layers", "sparsity"):
            if (each := getattr(self, name)) is not None and len(each) != self.layers:
                problems.append(
                    f"{name} has {len(each)} entries: expected {self.layers}, one a layer"
                )
        if self.parallel and (self.post_norms or not self.pre_norms):
            problems.append("parallel attention and MLP have one norm, before both")
        if self.experts is not None:
            problems += self.experts.problems()
        if self.expert_layers is not None and (
            self.experts is None or len(set(self.expert_layers)) < 2
        ):
            problems.append(
                f"expert_layers is {self.expert_layers}: expected some with the experts that the "
                "model has, some without"
            )
        problems += (
            self._problems_of_linear()
            + self._problems_of_latent()
            + self._problems_of_streams()
            + self._problems_of_borrowing()
            + problems_of_labels(self.labels)
        )
        if self.labels and self.tied:
            problems.append("tied is True, but a head for classification is never the embedding")
        if problems:
            raise ValueError(f"model configuration: {'; '.join(problems)}")

    def _problems_of_linear(self) -> list[str]:
        problems = [] if self.linear is None else self.linear.problems()
        if self.linear_layers is not None and (
            self.linear is None or len(set(self.linear_layers)) < 2
        ):
            problems.append(
                f"linear_layers is {self.linear_layers}: expected some by the delta rule that the "
                "model has, some not"
            )
        if self.linear is not None and self.length_that_turns is not None:
            problems.append("linear and longrope exclude each other")
        if self.gated_attention and self.fused_qkv:
            problems.append("gated_attention and fused_qkv exclude each other")
        return problems

    def _problems_of_latent(self) -> list[str]:
        if (latent := self.latent) is None:
            return []
        problems = []
        sizes = (latent.width, latent.rotated, latent.value, latent.query_width or 1)
        if min(sizes) < 1 or latent.plain < 0 or latent.rotated % 2:
            problems.append(f"{latent}: expected sizes of at least 1, and rotated even")
        if self.head_dim != latent.plain + latent.rotated:
            problems.append(
                f"head_dim is {self.head_dim}: expected {latent.plain} + {latent.rotated}, the "
                "dimensions that are not rotated and those that are"
            )
        if self.kv_heads != self.heads:
            problems.append(
                f"{self.kv_heads} key-value heads for {self.heads} heads: expected as many, where "
                "keys and values come out of one short vector"
            )
        others = {"fused_qkv": self.fused_qkv, "qk_norm": self.qk_norm, "qk_rms": self.qk_rms}
        others |= {"gated_attention": self.gated_attention}
        others |= {"rotary_share": self.rotary_share != 1, "sinks": self.sinks}
        others |= {"value_rms": self.value_rms}
        problems += [f"latent and {name} exclude each other" for name, on in others.items() if on]
        return problems

    def _problems_of_streams(self) -> list[str]:
        problems = []
        if self.streams is not None and self.streams < 2:
            problems.append(f"streams is {self.streams}: expected at least 2")
        if self.laurel_rank is not None and self.laurel_rank < 1:
            problems.append(f"laurel_rank is {self.laurel_rank}: expected at least 1")
        if self.parallel and self.laurel_rank is not None:
            problems.append("laurel_rank and parallel exclude each other")
        if self.layer_inputs is not None and min(dataclasses.astuple(self.layer_inputs)) < 1:
            problems.append(f"{self.layer_inputs}: expected numbers of at least 1")
        if any(not 0 <= share < 1 for share in self.sparsity or ()):
            problems.append(f"sparsity is {self.sparsity}: expected shares from 0 to below 1")
        if self.sparsity is not None and (self.experts is not None or not self.gated):
            problems.append("sparsity is of the MLP's gate: expected gated, and no experts")
        return problems

    def _problems_of_borrowing(self) -> list[str]:
        if (count := self.borrowing) is None:
            return []
        if not 0 < count < self.layers:
            return [f"borrowing is {count}: expected at least 1 of {self.layers} layers, not all"]
        others = {"linear": self.linear is not None, "latent": self.latent is not None}
        others |= {"fused_qkv": self.fused_qkv, "chunks": self.chunks is not None}
        others |= {"rotated": self.rotated is not None}
        problems = [f"borrowing and {name} exclude each other" for name, on in others.items() if on]
        windows = self.windows or (None,) * self.layers
        lenders, borrowers = windows[: self.layers - count], windows[self.layers - count :]
        if len(windows) == self.layers and set(borrowers) - set(lenders):
            problems.append(
                f"the last {count} layers have windows {borrowers}: expected each among those of "
                f"the layers before, {lenders}, whose keys and values they read"
            )
        return problems


def problems_of_labels(labels: tuple[str, ...]) -> list[str]:
    """What can't be the labels of a head for classification."""
    return [f"labels are {labels}: expected each once"] if len(set(labels)) < len(labels) else []
