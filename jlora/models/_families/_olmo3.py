"""OLMo 3 (Ai2 2025): OLMo 2 with a window in three of four layers."""

from __future__ import annotations

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import WINDOWS, Gguf
from jlora.models._families._olmo2 import OLMO2, OLMO_DEFAULTS
from jlora.models._families._rope_settings import LocalAndGlobalRope
from jlora.models._families._settings import Activation, Biases, Heads
from jlora.models._families._window_settings import LayerWindows

OLMO3 = Family(
    architecture="Olmo3ForCausalLM",
    leaves=OLMO2.leaves,
    parts=(
        *(SIZES, Heads(), Activation(), Biases(), LayerWindows(every=4)),
        LocalAndGlobalRope(theta=500_000.0, local_theta=500_000.0),
    ),
    features=OLMO2.features,
    defaults={**OLMO_DEFAULTS, "sliding_window": 4096},
    gguf=Gguf(
        "olmo2",
        entries={**WINDOWS, "rope.freq_base_swa": "rope_local_base_freq"},
        missing=lambda given: {
            "layer_types": None,
            "rope_local_base_freq": given.get("rope_theta"),
        },
        only_where=lambda entry: bool(entry("attention.sliding_window")),
    ),
)
