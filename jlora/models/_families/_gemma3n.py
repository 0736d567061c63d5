"""Gemma 3n (Google 2025): four streams (AltUp), thin residuals (LAuReL), shared keys and values.

The towers for pictures and sound beside the decoder are left aside.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from jlora.models._families._family import Family, Nested
from jlora.models._families._gemma2 import GEMMA_LEAVES
from jlora.models._families._gguf_route import WINDOWS, Gguf
from jlora.models._families._llama import HEAD_NORMS
from jlora.models._families._rope_settings import LocalAndGlobalRope
from jlora.models._families._settings import Activation, Biases, Heads, Same, Settings
from jlora.models._families._window_settings import LayerWindows
from jlora.models._files._torch_tensors import linear, plain
from jlora.models._net._config import DecoderConfig
from jlora.models._net._part_configs import LayerInputs

_LAYER = "model.layers.{}"
_MOST_STREAMS = 8


@dataclasses.dataclass(frozen=True)
class _OneWidth:
    """The MLP's width: a number, or a list with the same one for each layer."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """mlp_width."""
        widths = settings.values.get("intermediate_size")
        if not isinstance(widths, list | tuple):
            return {"mlp_width": settings.whole("intermediate_size")}
        settings.asked.add("intermediate_size")
        if len(widths) != settings.get("num_hidden_layers", 0) or len(set(widths)) != 1:
            settings.problems.append(
                f"intermediate_size has {len(widths)} entries, {len(set(widths))} of them "
                "different: expected the same one for each layer"
            )
            return {}
        return {"mlp_width": widths[0]}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """intermediate_size."""
        return {"intermediate_size": config.mlp_width}


@dataclasses.dataclass(frozen=True)
class _Sparsity:
    """``activation_sparsity_pattern``: without it, 0.95 in the first ten layers of more than ten.

    In a GGUF file stand the standard deviations that have such shares below them.
    """

    def read(self, settings: Settings) -> dict[str, Any]:
        """sparsity."""
        layers = settings.get("num_hidden_layers", 0)
        sparse = 10 if layers > 10 else 0
        missing = [0.95] * sparse + [0.0] * (layers - sparse)
        limits = settings.get("activation_sparsity_scale")
        if limits is not None:
            limits = limits if isinstance(limits, list) else [limits] * layers
            missing = [round(statistics.NormalDist().cdf(limit), 6) for limit in limits]
        shares = tuple(map(float, settings.get("activation_sparsity_pattern", missing)))
        if len(shares) != layers:
            settings.problems.append(
                f"activation_sparsity_pattern has {len(shares)} entries, expected {layers}"
            )
        return {"sparsity": shares if any(shares) else None}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The same."""
        return {"activation_sparsity_pattern": [*(config.sparsity or (0.0,) * config.layers)]}


@dataclasses.dataclass(frozen=True)
class _LayerInputs:
    """The short vector that each layer gets of the tokens, and how many last layers borrow keys."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """layer_inputs, borrowing."""
        names = ("vocab_size_per_layer_input", "hidden_size_per_layer_input")
        vocabulary, width = (settings.whole(name) for name in names)
        borrowing = settings.whole("num_kv_shared_layers") or None
        if None in (vocabulary, width):
            return {}
        return {"layer_inputs": LayerInputs(vocabulary, width), "borrowing": borrowing}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """The settings."""
        settings = {"num_kv_shared_layers": config.borrowing or 0}
        if (inputs := config.layer_inputs) is None:
            return settings
        return {
            "vocab_size_per_layer_input": inputs.vocabulary,
            "hidden_size_per_layer_input": inputs.width,
            **settings,
        }


def _as_llama_cpp_takes_it(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the published models alone: 20 layers have keys and values of their own."""
    return {
        "rope_local_base_freq": 10000.0,
        "final_logit_softcapping": 30.0,
        "layer_types": None,
        "laurel_rank": 64,
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "num_kv_shared_layers": max(0, (given["num_hidden_layers"] or 0) - 20),
        "activation_sparsity_scale": None,
        "vocab_size_per_layer_input": given["vocab_size"],  # rows of zeros are added
    }


GEMMA3N_TEXT = Family(
    architecture="Gemma3nForCausalLM",
    classifier=None,
    leaves={
        **GEMMA_LEAVES,
        **HEAD_NORMS,
        "layer_inputs/embed/embedding": plain("model.embed_tokens_per_layer.weight"),
        "layer_inputs/proj/kernel": linear("model.per_layer_model_projection.weight"),
        "layer_inputs/norm/scale": plain("model.per_layer_projection_norm.weight"),
        **{
            f"{path}_stream_{at}/kernel": linear(f"model.{name}.{at}.weight")
            for path, name in (
                ("to", "altup_projections"),
                ("from", "altup_unembed_projections"),
            )
            for at in range(_MOST_STREAMS - 1)
        },
        "layers/altup/router_norm/scale": plain(f"{_LAYER}.altup.router_norm.weight"),
        "layers/altup/router/kernel": linear(f"{_LAYER}.altup.modality_router.weight"),
        "layers/altup/prediction/kernel": linear(f"{_LAYER}.altup.prediction_coefs.weight"),
        "layers/altup/correction/kernel": linear(f"{_LAYER}.altup.correction_coefs.weight"),
        "layers/laurel/left_proj/kernel": linear(f"{_LAYER}.laurel.linear_left.weight"),
        "layers/laurel/right_proj/kernel": linear(f"{_LAYER}.laurel.linear_right.weight"),
        "layers/laurel/norm/scale": plain(f"{_LAYER}.laurel.post_laurel_norm.weight"),
        "layers/layer_input/scale": plain(f"{_LAYER}.altup.correct_output_scale"),
        "layers/layer_input/gate_proj/kernel": linear(f"{_LAYER}.per_layer_input_gate.weight"),
        "layers/layer_input/out_proj/kernel": linear(f"{_LAYER}.per_layer_projection.weight"),
        "layers/layer_input/norm/scale": plain(f"{_LAYER}.post_per_layer_input_norm.weight"),
    },
    parts=(
        Same(
            {
                "vocabulary": "vocab_size",
                "width": "hidden_size",
                "layers": "num_hidden_layers",
                "max_length": "max_position_embeddings",
                "norm_epsilon": "rms_norm_eps",
                "tied": "tie_word_embeddings",
                "streams": "altup_num_inputs",
                "laurel_rank": "laurel_rank",
            }
        ),
        *(_OneWidth(), Heads(), Activation("hidden_activation"), Biases()),
        LocalAndGlobalRope(theta=1_000_000.0, local_theta=10_000.0),
        LayerWindows(every=5),
        Same({"logit_cap": "final_logit_softcapping"}, needed=False),
        *(_LayerInputs(), _Sparsity()),
    ),
    features={
        "post_norms": True,
        "scaled_embedding": True,
        "qk_norm": True,
        "value_rms": True,
        "attention_scale": 1.0,
    },
    defaults={
        "vocab_size": 262_400,
        "hidden_size": 2048,
        "intermediate_size": 16_384,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
    },
    only={"altup_active_idx": (0,), "altup_correct_scale": (True,)},
    # The first two count in training alone. Attention does not scale its scores.
    settings_aside=frozenset({"altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar"}),
    gguf=Gguf(
        "gemma3n",
        entries={
            **WINDOWS,
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
            "altup.num_inputs": "altup_num_inputs",
            "altup.active_idx": "altup_active_idx",
            "embedding_length_per_layer_input": "hidden_size_per_layer_input",
            "attention.shared_kv_layers": "num_kv_shared_layers",
            "activation_sparsity_scale": "activation_sparsity_scale",
        },
        missing=_as_llama_cpp_takes_it,
        stacked={
            "to_stream_{}/kernel": "altup_proj.weight",
            "from_stream_{}/kernel": "altup_unembd_proj.weight",
        },
        unadapted=(
            r"(to|from)_stream_\d+/kernel",
            "layer_inputs/proj/kernel",
            "layers/altup/router/kernel",
        ),
    ),
)

GEMMA3N = dataclasses.replace(
    GEMMA3N_TEXT,
    architecture="Gemma3nForConditionalGeneration",
    leaves={
        path: dataclasses.replace(leaf, name=leaf.name.replace("model.", "model.language_model."))
        for path, leaf in GEMMA3N_TEXT.leaves.items()
    },
    gguf=None,  # llama.cpp keeps the towers in a file of their own
    tensors_aside=("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio."),
    nested=Nested(setting="text_config", model_type="gemma3n_text"),
)
