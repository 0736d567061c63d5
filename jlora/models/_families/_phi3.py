"""Phi 3 and 4 (arXiv 2404.14219): llama with q, k, v in one projection, gate and up in one."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import WINDOW, Gguf
from jlora.models._families._llama import DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads
from jlora.models._families._window_settings import OneWindow
from jlora.models._files._torch_tensors import linear

_APART = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

_OLDER = {"su": "longrope", "yarn": "longrope"}  # what earlier files call it

PHI3 = Family(
    architecture="Phi3ForCausalLM",
    leaves={
        **{path: leaf for path, leaf in LEAVES.items() if path.split("/")[-2] not in _APART},
        "layers/attn/qkv_proj/kernel": linear("model.layers.{}.self_attn.qkv_proj.weight"),
        "layers/mlp/gate_up_proj/kernel": linear("model.layers.{}.mlp.gate_up_proj.weight"),
    },
    parts=(
        *(SIZES, Heads(), Activation(), OneWindow()),
        Rope(kinds=("longrope",), partial=True, renamed=_OLDER, beside=True),
    ),
    features={"fused_qkv": True, "fused_gate_up": True},
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "original_max_position_embeddings": 4096,
    },
    gguf=Gguf(
        "phi3",
        entries={
            **WINDOW,
            "rope.scaling.original_context_length": "original_max_position_embeddings",
        },
        missing=lambda given: {"sliding_window": None, "original_max_position_embeddings": 4096},
    ),
)
