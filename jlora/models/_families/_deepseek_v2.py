"""DeepSeek-V2 (arXiv 2405.04434), V2-Lite and Coder: as V3, each expert's share by a softmax."""

from __future__ import annotations

from typing import Any

from jlora.models._families._deepseek_v3 import (
    LATENT_LEAVES,
    GroupedExperts,
    LatentHeads,
    gguf_route,
)
from jlora.models._families._family import SIZES, Family
from jlora.models._families._llama import BIASES, DEFAULTS
from jlora.models._families._rope_settings import SharperRope
from jlora.models._families._settings import Activation, Biases, Settings
from jlora.models._files._torch_tensors import plain
from jlora.models._net._part_configs import Experts

_GREEDY, _BY_GROUP = "greedy", "group_limited_greedy"


class _Experts(GroupedExperts):
    """A group counts by the best of its experts; or there are none."""

    def _routing(self, settings: Settings) -> dict[str, Any]:
        kind = settings.get("topk_method", _GREEDY)
        if kind not in (_GREEDY, _BY_GROUP):
            settings.problems.append(
                f"topk_method is {kind!r}, but only {_GREEDY!r} and {_BY_GROUP!r} are supported"
            )
        groups = settings.whole("n_group", needed=kind == _BY_GROUP)
        chosen = settings.whole("topk_group", needed=kind == _BY_GROUP)
        grouped = {"groups": groups, "chosen_groups": chosen} if kind == _BY_GROUP else {}
        return {"normalised": False, **grouped}

    def _written(self, experts: Experts) -> dict[str, Any]:
        if experts.groups == experts.chosen_groups == 1:
            return {"topk_method": _GREEDY}
        return {
            "topk_method": _BY_GROUP,
            "n_group": experts.groups,
            "topk_group": experts.chosen_groups,
        }


DEEPSEEK_V2 = Family(
    architecture="DeepseekV2ForCausalLM",
    leaves={
        **LATENT_LEAVES,
        **{path: leaf for path, leaf in BIASES.items() if "/mlp/" in path},
        **{
            f"layers/mlp/shared/{name}/bias": plain(
                f"model.layers.{{}}.mlp.shared_experts.{name}.bias"
            )
            for name in ("gate_proj", "up_proj", "down_proj")
        },
    },
    parts=(
        *(SIZES, LatentHeads(), Activation(), Biases(mlp="mlp_bias"), SharperRope(), _Experts()),
    ),
    features={"interleaved": True},
    defaults={
        **DEFAULTS,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "topk_method": _GREEDY,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
    },
    # transformers has them, and does not look at norm_topk_prob
    only={
        "norm_topk_prob": (False, None),
        "scoring_func": ("softmax", None),
        "moe_layer_freq": (1, None),
    },
    settings_aside=frozenset({"head_dim", "qk_head_dim", "ep_size"}),
    gguf=gguf_route(
        lambda given: {
            "n_group": None,
            "topk_group": None,
            "topk_method": _BY_GROUP if (given["n_group"] or 1) > 1 else _GREEDY,
        }
    ),
)
