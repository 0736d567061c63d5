"""How llama.cpp's GGUF files say what a family's config.json does, and hold its weights.

The facts are in llama.cpp: the class of its converter that writes the architecture (entries of the
header, what becomes of the weights), and its source that loads it (what it takes where the header
says nothing). Names of tensors are the `gguf` package's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jlora.models._net._config import DecoderConfig

Undo = Callable[[np.ndarray, DecoderConfig], np.ndarray]

# Entries of the header without the architecture before them -> what most families call them.
ENTRIES: dict[str, str | None] = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
WINDOW: dict[str, str | None] = {"attention.sliding_window": "sliding_window"}
PATTERN = (
    "attention.sliding_window_pattern"  # a flag for each layer, or every so manieth is without
)
WINDOWS: dict[str, str | None] = {**WINDOW, PATTERN: "layer_types"}
NO_WINDOWS = {"sliding_window": None, "layer_types": None}


def layer_norm(setting: str) -> dict[str, str | None]:
    """The epsilon of a family whose norms subtract the mean."""
    return {
        "attention.layer_norm_epsilon": setting,
        "attention.layer_norm_rms_epsilon": None,  # which some converters write all the same
    }


def mixture(count: str, width: str | None = None) -> dict[str, str | None]:
    """Experts, by the family's names for their number and their width."""
    own = {} if width is None else {"expert_feed_forward_length": width}
    return {"expert_count": count, "expert_used_count": "num_experts_per_tok", **own}


def _nothing(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Gguf:
    """One family's files: settings out of the header, and what to undo in the weights."""

    architecture: str  # in general.architecture
    # Entry -> setting, beside ENTRIES; None where it says nothing of the decoder.
    entries: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    # Settings that the header may leave out, from those that it gave.
    missing: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing
    undo: Mapping[str, Undo] = dataclasses.field(default_factory=dict)  # by patterns of our paths
    only_with: str | None = None  # the entry that another family of the architecture has not


def halves(rows: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... side by side back to two halves."""
    pairs = rows.reshape(-1, config.head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def less_one(scale: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """The scale of a norm that multiplies by 1 + scale, out of that sum."""
    return scale - np.float32(1)


PAIRS: dict[str, Undo] = {"layers/attn/[qk]_proj/(kernel|bias)": halves}
ONE_ADDED: dict[str, Undo] = {".*norm/scale": less_one}
