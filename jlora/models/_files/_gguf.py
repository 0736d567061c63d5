"""A model out of a .gguf file: tensors dequantised, tokenizer and template from the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora import _words
from jlora._requires import requires
from jlora.models._families import FAMILIES
from jlora.models._families._checks import mistyped
from jlora.models._files import _gguf_fields, _gguf_rope
from jlora.models._files._stacking import Opened
from jlora.models._files._torch_tensors import Stored, linear, plain
from jlora.models._net._config import DecoderConfig
from jlora.models._text import _from_gguf

_LLAMA = {
    "embed/embedding": plain("token_embd.weight"),
    "layers/attn_norm/scale": plain("blk.{}.attn_norm.weight"),
    "layers/attn/q_proj/kernel": linear("blk.{}.attn_q.weight"),
    "layers/attn/k_proj/kernel": linear("blk.{}.attn_k.weight"),
    "layers/attn/v_proj/kernel": linear("blk.{}.attn_v.weight"),
    "layers/attn/o_proj/kernel": linear("blk.{}.attn_output.weight"),
    "layers/mlp_norm/scale": plain("blk.{}.ffn_norm.weight"),
    "layers/mlp/gate_proj/kernel": linear("blk.{}.ffn_gate.weight"),
    "layers/mlp/up_proj/kernel": linear("blk.{}.ffn_up.weight"),
    "layers/mlp/down_proj/kernel": linear("blk.{}.ffn_down.weight"),
    "norm/scale": plain("output_norm.weight"),
    "head/kernel": linear("output.weight"),
}
_QKV_BIASES = {
    f"layers/attn/{name}_proj/bias": plain(f"blk.{{}}.attn_{name}.bias") for name in ("q", "k", "v")
}
_HEAD_NORMS = {
    f"layers/attn/{name}_norm/scale": plain(f"blk.{{}}.attn_{name}_norm.weight")
    for name in ("q", "k")
}
_LEAVES: dict[str, dict[str, Stored]] = {
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, **_QKV_BIASES},
    "qwen3": {**_LLAMA, **_HEAD_NORMS},
    "olmo2": {
        **{path: leaf for path, leaf in _LLAMA.items() if not path.endswith("_norm/scale")},
        **_HEAD_NORMS,
        "layers/attn_post_norm/scale": plain("blk.{}.post_attention_norm.weight"),
        "layers/mlp_post_norm/scale": plain("blk.{}.post_ffw_norm.weight"),
    },
}
# Where q and k lie in the file with the two halves of each head interleaved
_INTERLEAVED = {"llama": ("layers/attn/q_proj/kernel", "layers/attn/k_proj/kernel")}


def opened(path: Path) -> Opened:
    """A GGUF file, or all of those that it was split into.

    Raises:
        ValueError: when the file is no whole GGUF file, or of a model that jlora does not know.
    """
    gguf = requires("gguf")
    where = str(path)
    fields, tensors = _gguf_fields.read(path)
    config = _header(fields, tensors, where=where)
    leaves = _LEAVES[config.family]
    try:
        tokenizer = _from_gguf.from_gguf(fields, where)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{where}: the tokenizer in the header can't be used: {_words.one_line(repr(error))}"
        ) from None

    interleaved = {
        leaves[path].name.format(layer)
        for path in _INTERLEAVED.get(config.family, ())
        for layer in range(config.layers)
    }

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        return _halves(array, config.head_dim) if name in interleaved else array

    return Opened(
        config=config,
        tokenizer=tokenizer,
        leaves=leaves,
        shapes={name: tuple(map(int, tensor.shape))[::-1] for name, tensor in tensors.items()},
        read=read,
        dtype=lambda name: _dtype(tensors[name], gguf),
        ignored=(_gguf_rope.TENSOR,),  # which the configuration has honoured
        where=where,
    )


def _dtype(tensor: Any, gguf: Any) -> np.dtype:
    """Of what `gguf.dequantize` gives.

    Raises:
        ValueError: when the tensor holds no floats, or in a format that gguf can't decode.
    """
    try:
        gguf.dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], tensor.tensor_type)
    except NotImplementedError:
        kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
        raise ValueError(f"{tensor.name} is of type {kind}, which holds no weights") from None
    return np.dtype(np.float32)


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... side by side back to two halves."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# Entries of a header that say nothing more of the decoder.
_ASIDE = frozenset(
    {
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "expert_used_count",
    }
)


def _header(fields: Mapping[str, Any], tensors: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder's configuration from the header of a GGUF file, and its stretched RoPE.

    Raises:
        ValueError: when an entry is missing, of the wrong kind or unknown, or the architecture is.
    """
    architecture = fields.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _LEAVES:
        raise ValueError(
            f"{where}: the architecture is {architecture!r}, but from GGUF jlora.models reads "
            f"{', '.join(_LEAVES)}: load the model's Hugging Face folder"
        )
    asked: set[str] = set()

    def field(name: str, default: Any = None) -> Any:
        asked.add(name)
        value = fields.get(f"{architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{where}: the header has no {architecture}.{name}")
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            return value[0]  # one for each layer, and all the same
        return value

    heads, width = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", _share(width, heads))
    theta = field("rope.freq_base", 10000.0)
    tokens = fields.get("tokenizer.ggml.tokens", ())
    entries: dict[str, Any] = {
        "vocabulary": field("vocab_size", len(tokens) if isinstance(tokens, list) else 0),
        "width": width,
        "layers": field("block_count"),
        "heads": heads,
        "kv_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "mlp_width": field("feed_forward_length"),
        "max_length": field("context_length"),
        "norm_epsilon": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
    }
    problems = mistyped(entries)
    for name, only in (
        ("rope.dimension_count", head_dim),
        ("attention.value_length", head_dim),
        ("attention.causal", True),
    ):
        if (value := field(name, only)) != only:
            problems.append(f"{name} is {value!r}, but only {only!r} is supported")
    kind, factor = field("rope.scaling.type", "none"), field("rope.scaling.factor", 1.0)
    known = {f"{architecture}.{name}" for name in asked | _ASIDE}
    problems += [
        f"{name} is {_words.one_line(repr(fields[name]), 60)}: jlora.models does not know this "
        "entry"
        for name in fields
        if name.startswith(f"{architecture}.") and name not in known and fields[name]
    ]
    if problems:
        raise ValueError(f"{where}: the header:{_words.first_few(problems, 12)}")
    try:
        scaling: Any = _gguf_rope.of_header(kind, factor)
        if _gguf_rope.TENSOR in tensors:
            scaling = _divided(tensors[_gguf_rope.TENSOR], head_dim, theta, scaling)
        return DecoderConfig(
            **entries,
            rope_scaling=scaling,
            tied="output.weight" not in tensors,
            family=architecture,
            **FAMILIES[architecture].features,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _share(width: Any, heads: Any) -> Any:
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _divided(tensor: Any, head_dim: int, theta: float, said: Any) -> Any:
    """The scaling that the tensor of divisors says, beside which the header must say none."""
    divisors = np.asarray(tensor.data).reshape(-1)
    if said is not None or len(divisors) != head_dim // 2 or divisors.dtype != np.float32:
        raise ValueError(
            f"{_gguf_rope.TENSOR} is {divisors.dtype}[{len(divisors)}]: expected "
            f"float32[{head_dim // 2}], and no rope.scaling.type beside it"
        )
    return _gguf_rope.of_divisors(divisors, theta)
