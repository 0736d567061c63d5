"""Nemotron 3, 4 and Minitron (arXiv 2402.16819): LayerNorm around one, relu squared, no gate."""

from __future__ import annotations

from jlora.models._families._family import Family, sizes
from jlora.models._families._gguf_route import ONE_ADDED, Gguf, layer_norm
from jlora.models._families._llama import BIASES, LEAVES, NORM_BIASES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads

NEMOTRON = Family(
    architecture="NemotronForCausalLM",
    leaves={
        **{path: leaf for path, leaf in (LEAVES | BIASES).items() if "gate_proj" not in path},
        **NORM_BIASES,
    },
    parts=(
        *(sizes("norm_eps"), Heads(), Activation(), Biases(mlp="mlp_bias")),
        Rope(partial=True, share=0.5),
    ),
    features={"norm": "layer_plus_one", "gated": False},
    defaults={
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    gguf=Gguf("nemotron", entries=layer_norm("norm_eps"), undo=ONE_ADDED),
)
