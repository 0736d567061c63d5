"""What some decoders have in the place of a common part, or beside it: the numbers of each."""

from __future__ import annotations

import dataclasses


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
