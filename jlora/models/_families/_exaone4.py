"""EXAONE 4 (arXiv 2507.11407): norms after attention and MLP alone, windows that are rotated."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import NO_WINDOWS, WINDOWS, Gguf
from jlora.models._families._llama import DEFAULTS
from jlora.models._families._olmo2 import POST_NORM_FEATURES, POST_NORM_LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Heads
from jlora.models._families._window_settings import LayerWindows, RotatedWindows

EXAONE4 = Family(
    architecture="Exaone4ForCausalLM",
    leaves=POST_NORM_LEAVES,
    parts=(
        *(SIZES, Heads(), Activation(), Rope()),
        RotatedWindows(LayerWindows(every=4), otherwise=True),
    ),
    features=POST_NORM_FEATURES,
    defaults={
        **DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    gguf=Gguf("exaone4", entries=WINDOWS, missing=lambda given: NO_WINDOWS),
)
