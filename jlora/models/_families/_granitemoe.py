"""Granite 3 with experts (IBM 2024): a mixture of them in place of every layer's MLP."""

from __future__ import annotations

from jlora.models._families._family import Family
from jlora.models._families._gguf_route import PAIRS, Gguf, mixture
from jlora.models._families._granite import (
    GRANITE_DEFAULTS,
    GRANITE_ENTRIES,
    GRANITE_PARTS,
    without_multipliers,
)
from jlora.models._families._llama import ATTENTION_BIASES, LEAVES, without_mlp
from jlora.models._families._settings import Biases, Mixture
from jlora.models._files._torch_tensors import experts, router

_MLP = "model.layers.{}.block_sparse_moe"

GRANITEMOE = Family(
    architecture="GraniteMoeForCausalLM",
    classifier=None,
    leaves={
        **without_mlp(LEAVES),
        **ATTENTION_BIASES,
        "layers/mlp/router/kernel": router(
            f"{_MLP}.router.weight", in_file=f"{_MLP}.router.layer.weight"
        ),
        "layers/mlp/experts/gate_up_proj/kernel": experts(
            f"{_MLP}.experts.gate_up_proj", in_file=f"{_MLP}.input_linear.weight"
        ),
        "layers/mlp/experts/down_proj/kernel": experts(
            f"{_MLP}.experts.down_proj", in_file=f"{_MLP}.output_linear.weight"
        ),
    },
    parts=(
        *(*GRANITE_PARTS, Biases()),
        Mixture("num_local_experts", "intermediate_size", always_normalised=True),
    ),
    features={},
    defaults={**GRANITE_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2},
    gguf=Gguf(
        "granitemoe",
        entries={**GRANITE_ENTRIES, **mixture("num_local_experts")},
        missing=without_multipliers,
        undo=PAIRS,
    ),
)
