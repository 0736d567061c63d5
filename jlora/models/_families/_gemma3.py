"""Gemma 3's text models (arXiv 2503.19786): normed queries and keys, two rotary bases."""

from __future__ import annotations

from jlora.models._families._family import Family
from jlora.models._families._gemma2 import (
    GEMMA_DEFAULTS,
    GEMMA_FEATURES,
    GEMMA_LEAVES,
    GEMMA_PARTS,
)
from jlora.models._families._llama import HEAD_NORMS
from jlora.models._families._rope_settings import LocalAndGlobalRope
from jlora.models._families._settings import Same
from jlora.models._families._window_settings import LayerWindows

GEMMA3_TEXT = Family(
    architecture="Gemma3ForCausalLM",
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
)
