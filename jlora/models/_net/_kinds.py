"""Which net a configuration is of, and the error where a decoder is needed."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from jlora.models._net._decoder import Decoder
from jlora.models._net._encoder import Encoder
from jlora.models._net._encoder_config import Config, EncoderConfig


def net_of(config: Config) -> nn.Module:
    """The module whose `init` makes all parameters of such a model out of tokens."""
    return Encoder(config) if isinstance(config, EncoderConfig) else Decoder(config)


def encoder_is_none(config: Config, name: str, what: str) -> ValueError:
    """The error that says of an encoder that only a decoder does ``what`` ("writes answers")."""
    return ValueError(
        f"{name} is an encoder ({config.family}), and only a decoder {what}. An encoder gives "
        "hidden states, and with a head the scores of labels: model.apply(model.params, "
        "**model.inputs(texts))"
    )


def require_decoder(config: Any, name: str, what: str) -> None:
    """Raises the ValueError of `encoder_is_none` for an encoder's configuration."""
    if isinstance(config, EncoderConfig):
        raise encoder_is_none(config, name, what)
