"""GLM 4 of 2025 (Z.ai): norms before and after, neighbours rotated together, half of each head."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import ATTENTION_BIASES, DEFAULTS, LEAVES, without_mlp
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._files._torch_tensors import linear, plain

GLM4 = Family(
    architecture="Glm4ForCausalLM",
    leaves={
        **without_mlp(LEAVES),
        **ATTENTION_BIASES,
        "layers/attn_post_norm/scale": plain("model.layers.{}.post_self_attn_layernorm.weight"),
        "layers/mlp_post_norm/scale": plain("model.layers.{}.post_mlp_layernorm.weight"),
        "layers/mlp/gate_up_proj/kernel": linear("model.layers.{}.mlp.gate_up_proj.weight"),
        "layers/mlp/down_proj/kernel": linear("model.layers.{}.mlp.down_proj.weight"),
    },
    parts=(SIZES, Heads(), Activation(), Biases(o=None), Rope(partial=True, share=0.5)),
    features={"post_norms": True, "fused_gate_up": True, "interleaved": True},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 0.00000015625,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "attention_bias": True,
    },
    # An adapter of these ends llama.cpp: it sets the precision of a product and finds a sum.
    gguf=Gguf("glm4", unadapted=("layers/(attn/o|mlp/down)_proj/kernel",)),
)
