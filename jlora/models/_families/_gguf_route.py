"""How llama.cpp's GGUF files say what a family's config.json does, and hold its weights.

The facts are in llama.cpp: the class of its converter that writes the architecture (entries of the
header, what becomes of the weights), and its source that loads it (what it takes where the header
says nothing). Names of tensors are the `gguf` package's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jlora.models._net._config import DecoderConfig

Way = Callable[[np.ndarray, DecoderConfig], np.ndarray]
Entry = Callable[[str], Any]  # a header's entry by its name, or None

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


@dataclasses.dataclass(frozen=True)
class Undo:
    """What a converter did to a weight: the way out of a file, and the way back into one."""

    out: Way
    back: Way  # its inverse


@dataclasses.dataclass(frozen=True)
class Joined:
    """A parameter of which a file may hold the parts alone."""

    whole: str  # in the name of the parameter
    parts: tuple[str, ...]  # in its place, in the names of the parts
    shape: Callable[[Sequence[tuple[int, ...]]], tuple[int, ...]]  # of the whole, by the parts'
    join: Callable[[Sequence[np.ndarray], DecoderConfig], np.ndarray]
    # its inverse, by the parts' shapes
    apart: Callable[[np.ndarray, Sequence[tuple[int, ...]], DecoderConfig], Sequence[np.ndarray]]
    # How many rows of so many each part has; None where the parts are more than rows of the whole.
    rows: Callable[[int, DecoderConfig], Sequence[int]] | None = None


def _experts_together(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    (count, gate, *rest), (_, up, *_) = shapes
    return (count, gate + up, *rest)


def _gate_and_up(found: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    """Gate and up of all experts, (experts, out, ...), one after the other or row by row."""
    if config.experts is None or not config.experts.interleaved:
        return np.concatenate(found, axis=1)
    return np.stack(found, axis=2).reshape(_experts_together([part.shape for part in found]))


def _two_halves(rows: int, config: DecoderConfig) -> tuple[int, int]:
    return rows // 2, rows // 2


def _gate_apart_from_up(
    whole: np.ndarray, shapes: Sequence[tuple[int, ...]], config: DecoderConfig
) -> Sequence[np.ndarray]:
    """The inverse of `_gate_and_up`."""
    if config.experts is None or not config.experts.interleaved:
        return np.split(whole, [shapes[0][1]], axis=1)
    return whole[:, 0::2], whole[:, 1::2]


def rows_together(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of (out, in) matrices one below the other."""
    return (sum(rows for rows, *_ in shapes), *shapes[0][1:])


GATE_UP = Joined(
    "gate_up", ("gate", "up"), _experts_together, _gate_and_up, _gate_apart_from_up, _two_halves
)

# Our paths -> tensors to which no name in transformers leads the `gguf` package.
NAMES: dict[str, str] = {
    f"layers/mlp/experts/gate_up_proj/{leaf}": f"blk.{{}}.ffn_gate_up_exps.{suffix}"
    for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))
}


def _nothing(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Gguf:
    """One family's files: settings out of the header, and what to undo in the weights."""

    architecture: str  # in general.architecture
    # Entry -> setting, beside ENTRIES; None where it says nothing of the decoder. Of two entries
    # for one setting the later one counts, where it is there. A name that begins with _ is no
    # setting: `missing` alone sees it.
    entries: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    # Settings that the header may leave out, from those that it gave.
    missing: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing
    undo: Mapping[str, Undo] = dataclasses.field(default_factory=dict)  # by patterns of our paths
    # Whether a file of an architecture that others have too is this family's.
    only_where: Callable[[Entry], bool] | None = None
    joined: tuple[Joined, ...] = (GATE_UP,)
    # Our paths -> tensors, beside NAMES.
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Patterns of our paths -> the dimension of one that the converter leaves out.
    squeezed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # Tensors that hold several of our leaves, one behind the other, with {} for the number of each.
    stacked: Mapping[str, str] = dataclasses.field(default_factory=dict)  # our path -> the tensor
    # Patterns of our paths: weights to which llama.cpp adds no adapter, or of which one ends it.
    unadapted: tuple[str, ...] = ()
    # The architecture that its converter gives a Hugging Face folder, where that is another.
    of_folders: str | None = None

    def in_a_stack(self, path: str) -> tuple[str, int] | None:
        """The tensor that holds this leaf among others, and its place there."""
        for ours, tensor in self.stacked.items():
            start, _, end = ours.partition("{}")
            number = path.removeprefix(start).removesuffix(end)
            if path == ours.format(number) and number.isdecimal():
                return tensor, int(number)
        return None


def halves(rows: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... side by side back to two halves."""
    pairs = rows.reshape(-1, config.head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def pairs(rows: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """The inverse of `halves`."""
    in_halves = rows.reshape(-1, 2, config.head_dim // 2, *rows.shape[1:])
    return in_halves.swapaxes(1, 2).reshape(rows.shape)


def less_one(scale: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """The scale of a norm that multiplies by 1 + scale, out of that sum."""
    return scale - np.float32(1)


def plus_one(scale: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """The inverse of `less_one`, to rounding."""
    return scale + np.float32(1)


HALVES, LESS_ONE = Undo(halves, pairs), Undo(less_one, plus_one)
OF_ROWS = frozenset([HALVES])  # those that give rows another order, and no more
PAIRS: dict[str, Undo] = {"layers/attn/[qk]_proj/(kernel|bias)": HALVES}
ONE_ADDED: dict[str, Undo] = {".*norm/scale": LESS_ONE}
