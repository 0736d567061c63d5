"""StarCoder 2 (arXiv 2402.19173): LayerNorm, biases everywhere, an MLP without gate."""

from __future__ import annotations

from jlora.models._families._family import Family, sizes
from jlora.models._families._gguf_route import Gguf, layer_norm
from jlora.models._families._llama import ATTENTION_BIASES, LEAVES, NORM_BIASES, without_mlp
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._families._window_settings import OneWindow
from jlora.models._files._torch_tensors import linear, plain

_MLP = {"up_proj": "model.layers.{}.mlp.c_fc", "down_proj": "model.layers.{}.mlp.c_proj"}

STARCODER2 = Family(
    architecture="Starcoder2ForCausalLM",
    leaves={
        **without_mlp(LEAVES),
        **ATTENTION_BIASES,
        **NORM_BIASES,
        **{
            f"layers/mlp/{ours}/kernel": linear(f"{theirs}.weight") for ours, theirs in _MLP.items()
        },
        **{f"layers/mlp/{ours}/bias": plain(f"{theirs}.bias") for ours, theirs in _MLP.items()},
    },
    parts=(
        *(sizes("norm_epsilon"), Heads(), Activation(), Rope(), OneWindow()),
        Biases(qkv="use_bias", o="use_bias", mlp="use_bias"),
    ),
    features={"norm": "layer", "gated": False},
    defaults={
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "use_bias": True,
        "sliding_window": None,
    },
    only={"norm_type": ("layer_norm", None), "mlp_type": ("default", None)},
    settings_aside=frozenset({"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}),
    gguf=Gguf("starcoder2", entries=layer_norm("norm_epsilon")),
)
