"""What files hold and no model reads: keys and values of layers that read those of others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jlora.models._files._torch_tensors import Stored
from jlora.models._net._borrowing import lenders
from jlora.models._net._config import DecoderConfig

_KEYS_AND_VALUES = re.compile("layers/attn/[kv]_")


def left_over(leaves: Mapping[str, Stored], config: Any) -> set[str]:
    """The names of such tensors that a file of the model may hold.

    Args:
        leaves: how each of our leaves lies in the file.
        config: of the model.
    """
    if not isinstance(config, DecoderConfig):
        return set()
    own = [leaf for path, leaf in leaves.items() if _KEYS_AND_VALUES.match(path)]
    return {leaf.name.format(layer) for leaf in own for layer in lenders(config)}
