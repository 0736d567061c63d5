"""The numbers and features that make an encoder: one record for every family."""

from __future__ import annotations

import dataclasses

from jlora.models._net._config import DecoderConfig
from jlora.models._net._config_problems import ACTIVATIONS, problems_of_labels


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape and features of a transformer in which every token sees all others.

    Raises:
        ValueError: when no encoder can be so: everything that is wrong is named.

    Source: "BERT" (Devlin et al. 2018, arXiv 1810.04805).

    Example:
        >>> from jlora import models
        >>> config = models.EncoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64,
        ... )
        >>> config.head_dim
        4
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_length: int  # rows of the table of positions
    types: int = 2  # of tokens: those of the first text, those of the second
    norm_epsilon: float = 1e-12
    activation: str = "gelu"  # one of the decoder's
    family: str = "bert"

    # Positions are counted from the number behind this token's, and it is not counted; None: from 0
    padding: int | None = None
    pooler: bool = True  # a linear layer and tanh over the first token
    labels: tuple[str, ...] = ()  # that a head for classification has scores for; none without one
    own_dense: bool = False  # that head has a linear layer and tanh of its own, not the pooler's

    @property
    def head_dim(self) -> int:
        """The dimensions of one head of attention."""
        return self.width // self.heads

    @property
    def tied(self) -> bool:
        """False: there is no head over the vocabulary."""
        return False

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        return self.max_length - (0 if self.padding is None else self.padding + 1)

    def __post_init__(self):
        """Checks what can't be an encoder.

        Raises:
            ValueError: naming everything that is wrong.
        """
        problems = [
            f"{field.name} is {getattr(self, field.name)}: expected at least 1"
            for field in dataclasses.fields(self)
            if field.type == "int" and getattr(self, field.name) < 1
        ]
        if not problems and self.width % self.heads:
            problems.append(f"width is {self.width}: expected a multiple of its {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            problems.append(f"activation is {self.activation!r}: expected {known}")
        if not problems and self.longest < 1:
            problems.append(
                f"max_length is {self.max_length}: expected more than the {self.padding + 1} that "  # type: ignore[operator]
                "positions begin at"
            )
        problems += problems_of_labels(self.labels)
        if self.labels and not (self.pooler or self.own_dense):
            problems.append("a head for classification reads the pooler, and there is none")
        if problems:
            raise ValueError(f"model configuration: {'; '.join(problems)}")


Config = DecoderConfig | EncoderConfig
