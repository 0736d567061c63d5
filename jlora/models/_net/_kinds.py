"""Which net a configuration is of, and the error where one that writes is needed."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from jlora.models._net._decoder import Decoder
from jlora.models._net._encoder import Encoder
from jlora.models._net._encoder_config import Config, EncoderConfig


def net_of(config: Config) -> nn.Module:
    """The module whose `init` makes all parameters of such a model out of tokens."""
    return Encoder(config) if isinstance(config, EncoderConfig) else Decoder(config)


def require_writer(config: Any, name: str, what: str) -> None:
    """Nothing, for a decoder with a head over its vocabulary.

    Args:
        config: of the model.
        name: of the model.
        what: it shall do: "writes answers".

    Raises:
        ValueError: for every other model, with what that does instead.
    """
    if isinstance(config, EncoderConfig):
        raise ValueError(
            f"{name} is an encoder ({config.family}), and only a decoder {what}. An encoder gives "
            "hidden states, and with a head the scores of labels: model.apply(model.params, "
            "**model.inputs(texts))"
        )
    if config.labels:
        raise ValueError(
            f"{name} has a head for classification, and only one over the vocabulary {what}. It "
            "gives the scores of labels: model.apply(model.params, **model.inputs(texts))"
        )
