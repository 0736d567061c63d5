"""Gemma 3 (arXiv 2503.19786): normed queries and keys, two rotary bases.

The models from 4B on have a vision tower beside their decoder, which is left aside.
"""

from __future__ import annotations

import dataclasses

from jlora.models._families._family import Family, Nested
from jlora.models._families._gemma2 import (
    GEMMA_DEFAULTS,
    GEMMA_FEATURES,
    GEMMA_LEAVES,
    GEMMA_PARTS,
    scalar_by_layers,
)
from jlora.models._families._gguf_route import NO_WINDOWS, ONE_ADDED, WINDOWS, Gguf
from jlora.models._families._llama import HEAD_NORMS
from jlora.models._families._rope_settings import LocalAndGlobalRope
from jlora.models._families._settings import Same
from jlora.models._families._window_settings import LayerWindows

GEMMA3_TEXT = Family(
    architecture="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    leaves={**GEMMA_LEAVES, **HEAD_NORMS},
    parts=(
        *GEMMA_PARTS,
        LocalAndGlobalRope(theta=1_000_000.0, local_theta=10_000.0),
        LayerWindows(every=6),
        Same({"logit_cap": "final_logit_softcapping"}, needed=False),
    ),
    features={**GEMMA_FEATURES, "qk_norm": True},
    defaults={**GEMMA_DEFAULTS, "final_logit_softcapping": None},
    # transformers reads no cap on attention in this family, though its settings name one
    only={"use_bidirectional_attention": (False, None), "attn_logit_softcapping": (None,)},
    # layer_types and hidden_activation are read in their place
    settings_aside=frozenset({"sliding_window_pattern", "_sliding_window_pattern", "hidden_act"}),
    gguf=Gguf(
        "gemma3",
        entries={
            **WINDOWS,
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        missing=lambda given: {
            **NO_WINDOWS,
            **scalar_by_layers(given, 62),
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
        },
        undo=ONE_ADDED,
    ),
)

_IN_MEMORY, _IN_FILES = "model.language_model.", "language_model.model."
_VISION = ("vision_tower.", "multi_modal_projector.")
GEMMA3 = dataclasses.replace(
    GEMMA3_TEXT,
    architecture="Gemma3ForConditionalGeneration",
    classifier="",
    leaves={
        path: dataclasses.replace(
            leaf,
            name=leaf.name.replace("model.", _IN_MEMORY),
            in_file=leaf.name.replace("model.", _IN_FILES).replace("lm_", "language_model.lm_"),
        )
        for path, leaf in GEMMA3_TEXT.leaves.items()
    },
    defaults={
        **GEMMA3_TEXT.defaults,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
    },
    tensors_aside=_VISION,
    gguf=None,  # llama.cpp keeps the vision tower in a file of its own
    nested=Nested(
        setting="text_config",
        model_type="gemma3_text",
    ),
)
