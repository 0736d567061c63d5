"""A model out of a .gguf file: tensors dequantised, tokenizer and template from the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora._requires import requires
from jlora.models._families import FAMILIES
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
    """A GGUF file.

    Raises:
        ValueError: when the file is no whole GGUF file, or of a model that jlora does not know.
    """
    gguf = requires("gguf")
    where = str(path)
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise ValueError(f"{where}: no whole GGUF file ({error}). Get the file again") from None
    head = "output.weight"
    config = _header(fields, tied=head not in tensors, where=where)
    leaves = _LEAVES[config.family]
    tokenizer = _from_gguf.from_gguf(fields, where)

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
        dtype=lambda name: np.dtype(np.float32),
        ignored=("rope_freqs.weight",),
        where=where,
    )


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... side by side back to two halves."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _header(fields: Mapping[str, Any], tied: bool, where: str) -> DecoderConfig:
    """The decoder's configuration from the header of a GGUF file.

    Raises:
        ValueError: when an entry is missing or the architecture is unknown.
    """
    architecture = fields.get("general.architecture")
    if architecture not in _LEAVES:
        raise ValueError(
            f"{where}: the architecture is {architecture!r}, but from GGUF jlora.models reads "
            f"{', '.join(_LEAVES)}: load the model's Hugging Face folder"
        )

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"{architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{where}: the header has no {architecture}.{name}")
        return value

    if fields.get(f"{architecture}.rope.scaling.type", "none") != "none":
        raise ValueError(f"{where}: scaled RoPE in a GGUF file is not supported")
    heads, width = field("attention.head_count"), field("embedding_length")
    return DecoderConfig(
        vocabulary=field("vocab_size", len(fields.get("tokenizer.ggml.tokens", ())) or None),
        width=width,
        layers=field("block_count"),
        heads=heads,
        kv_heads=field("attention.head_count_kv", heads),
        head_dim=field("attention.key_length", width // heads),
        mlp_width=field("feed_forward_length"),
        max_length=field("context_length"),
        norm_epsilon=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base", 10000.0),
        tied=tied,
        family=str(architecture),
        **FAMILIES[str(architecture)].features,
    )
