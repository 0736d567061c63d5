"""What a family of models calls things: its configuration and its tensors, as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.models._config import DecoderConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture's files map onto the decoder.

    ``{}`` in a tensor's name stands for the layer. A kernel is stored as (out, in) in both formats
    and used as (in, out).
    """

    huggingface: Mapping[str, str]  # our path -> tensor in a safetensors file
    gguf: Mapping[str, str]  # our path -> tensor in a GGUF file
    unsupported: Mapping[str, Any]  # Hugging Face settings, and the one value that the decoder has
    # GGUF keeps q and k with the two halves of each head interleaved
    interleaved: tuple[str, ...] = ("layers/attn/q_proj/kernel", "layers/attn/k_proj/kernel")


LLAMA = Family(
    huggingface={
        "embed/embedding": "model.embed_tokens.weight",
        "layers/attn_norm/scale": "model.layers.{}.input_layernorm.weight",
        "layers/attn/q_proj/kernel": "model.layers.{}.self_attn.q_proj.weight",
        "layers/attn/k_proj/kernel": "model.layers.{}.self_attn.k_proj.weight",
        "layers/attn/v_proj/kernel": "model.layers.{}.self_attn.v_proj.weight",
        "layers/attn/o_proj/kernel": "model.layers.{}.self_attn.o_proj.weight",
        "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
        "layers/mlp/gate_proj/kernel": "model.layers.{}.mlp.gate_proj.weight",
        "layers/mlp/up_proj/kernel": "model.layers.{}.mlp.up_proj.weight",
        "layers/mlp/down_proj/kernel": "model.layers.{}.mlp.down_proj.weight",
        "norm/scale": "model.norm.weight",
        "head/kernel": "lm_head.weight",
    },
    gguf={
        "embed/embedding": "token_embd.weight",
        "layers/attn_norm/scale": "blk.{}.attn_norm.weight",
        "layers/attn/q_proj/kernel": "blk.{}.attn_q.weight",
        "layers/attn/k_proj/kernel": "blk.{}.attn_k.weight",
        "layers/attn/v_proj/kernel": "blk.{}.attn_v.weight",
        "layers/attn/o_proj/kernel": "blk.{}.attn_output.weight",
        "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
        "layers/mlp/gate_proj/kernel": "blk.{}.ffn_gate.weight",
        "layers/mlp/up_proj/kernel": "blk.{}.ffn_up.weight",
        "layers/mlp/down_proj/kernel": "blk.{}.ffn_down.weight",
        "norm/scale": "output_norm.weight",
        "head/kernel": "output.weight",
    },
    unsupported={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
)

FAMILIES: dict[str, Family] = {"llama": LLAMA}


def family_of(architecture: Any, where: str) -> Family:
    """The family by the name that a file gives it.

    Raises:
        ValueError: when there is none of this name.
    """
    if architecture not in FAMILIES:
        raise ValueError(
            f"{where}: the architecture is {architecture!r}, but jlora.models knows "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def from_huggingface(settings: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder's configuration from the contents of a config.json.

    Raises:
        ValueError: when a setting is missing or one that the decoder does not have.
    """
    family = family_of(settings.get("model_type"), where)
    problems = [
        f"{name} is {settings[name]!r}, but only {value!r} is supported"
        for name, value in family.unsupported.items()
        if settings.get(name, value) != value
    ]
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    needed = (*needed, "intermediate_size", "max_position_embeddings")
    problems += [f"{name} is missing" for name in needed if settings.get(name) is None]
    # transformers 5 writes both in one record, earlier releases apart
    rope = {**(settings.get("rope_scaling") or {}), **(settings.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        problems.append(f"RoPE scaling of type {kind!r}: expected none or 'llama3'")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    heads = settings["num_attention_heads"]
    return DecoderConfig(
        vocabulary=settings["vocab_size"],
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_dim=settings.get("head_dim") or settings["hidden_size"] // heads,
        mlp_width=settings["intermediate_size"],
        max_length=settings["max_position_embeddings"],
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", settings.get("rope_theta", 10000.0)),
        rope_scaling=_llama3(rope) if kind == "llama3" else None,
        tied=settings.get("tie_word_embeddings", False),
        family=settings["model_type"],
    )


def to_huggingface(config: DecoderConfig) -> dict[str, Any]:
    """The contents of a config.json of which `from_huggingface` makes this configuration."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
    }


def _llama3(rope: Mapping[str, Any]) -> RopeScaling:
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position=rope["original_max_position_embeddings"],
    )


def from_gguf(fields: Mapping[str, Any], tied: bool, where: str) -> DecoderConfig:
    """The decoder's configuration from the header of a GGUF file.

    Raises:
        ValueError: when an entry is missing or the architecture is unknown.
    """
    architecture = fields.get("general.architecture")
    family_of(architecture, where)

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
    )
