"""Command R7B and Command A (arXiv 2504.00698): windows, and no rotation in the other layers."""

from __future__ import annotations

from jlora.models._families._cohere import (
    COHERE_DEFAULTS,
    COHERE_ENTRIES,
    COHERE_FEATURES,
    COHERE_LEAVES,
    COHERE_LIMITS,
    COHERE_PARTS,
)
from jlora.models._families._family import Family
from jlora.models._families._gguf_route import WINDOWS, Gguf
from jlora.models._families._rope_settings import Rope
from jlora.models._families._window_settings import LayerWindows, RotatedWindows

COHERE2 = Family(
    architecture="Cohere2ForCausalLM",
    classifier=None,
    leaves=COHERE_LEAVES,
    parts=(*COHERE_PARTS, Rope(), RotatedWindows(LayerWindows(every=4), otherwise=False)),
    features=COHERE_FEATURES,
    defaults={**COHERE_DEFAULTS, "sliding_window": 4096},
    only={
        **COHERE_LIMITS,
        "layer_switch": (4, None),
        "order_of_interleaved_layers": ("local_attn_first", None),
    },
    gguf=Gguf(
        "cohere2",
        entries={**COHERE_ENTRIES, **WINDOWS},
        missing=lambda given: {"layer_types": None},
    ),
)
