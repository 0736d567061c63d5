"""Llama (Touvron et al. 2023, arXiv 2302.13971): the decoder that the other families vary."""

from __future__ import annotations

from collections.abc import Mapping

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import PAIRS, Gguf
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._files._torch_tensors import Stored, linear, plain

LEAVES = {
    "embed/embedding": plain("model.embed_tokens.weight"),
    "layers/attn_norm/scale": plain("model.layers.{}.input_layernorm.weight"),
    "layers/attn/q_proj/kernel": linear("model.layers.{}.self_attn.q_proj.weight"),
    "layers/attn/k_proj/kernel": linear("model.layers.{}.self_attn.k_proj.weight"),
    "layers/attn/v_proj/kernel": linear("model.layers.{}.self_attn.v_proj.weight"),
    "layers/attn/o_proj/kernel": linear("model.layers.{}.self_attn.o_proj.weight"),
    "layers/mlp_norm/scale": plain("model.layers.{}.post_attention_layernorm.weight"),
    "layers/mlp/gate_proj/kernel": linear("model.layers.{}.mlp.gate_proj.weight"),
    "layers/mlp/up_proj/kernel": linear("model.layers.{}.mlp.up_proj.weight"),
    "layers/mlp/down_proj/kernel": linear("model.layers.{}.mlp.down_proj.weight"),
    "norm/scale": plain("model.norm.weight"),
    "head/kernel": linear("lm_head.weight"),
}
BIASES = {
    f"layers/{part}/{name}/bias": plain(f"model.layers.{{}}.{module}.{name}.bias")
    for part, module, names in (
        ("attn", "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", "mlp", ("gate_proj", "up_proj", "down_proj")),
    )
    for name in names
}
ATTENTION_BIASES = {path: leaf for path, leaf in BIASES.items() if "/attn/" in path}
NORM_BIASES = {
    f"{path}/bias": plain(LEAVES[f"{path}/scale"].name.removesuffix("weight") + "bias")
    for path in ("layers/attn_norm", "layers/mlp_norm", "norm")
}
HEAD_NORMS = {
    f"layers/attn/{name}/scale": plain(f"model.layers.{{}}.self_attn.{name}.weight")
    for name in ("q_norm", "k_norm")
}
DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}


def without_mlp(leaves: Mapping[str, Stored]) -> dict[str, Stored]:
    """For families with another MLP."""
    return {path: leaf for path, leaf in leaves.items() if "/mlp/" not in path}


LLAMA = Family(
    architecture="LlamaForCausalLM",
    leaves={**LEAVES, **BIASES},
    parts=(SIZES, Heads(), Activation(), Biases(mlp="mlp_bias"), Rope()),
    features={},
    defaults=DEFAULTS,
    gguf=Gguf("llama", undo=PAIRS),
)
