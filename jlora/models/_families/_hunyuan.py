"""Hunyuan without experts (Tencent 2025): llama with queries and keys normed once rotated."""

from __future__ import annotations

import dataclasses
from typing import Any

from jlora.models._families._family import SIZES, Family
from jlora.models._families._gguf_route import Gguf
from jlora.models._families._llama import ATTENTION_BIASES, DEFAULTS, LEAVES
from jlora.models._families._rope_settings import Rope
from jlora.models._families._settings import Activation, Biases, Heads, Settings
from jlora.models._files._torch_tensors import plain


@dataclasses.dataclass(frozen=True)
class _StretchedRope(Rope):
    """Files call dynamic what only multiplies the base by a power of ``alpha``, once for all."""

    def read(self, settings: Settings) -> dict[str, Any]:
        rope = {**settings.get("rope_scaling", {}), **settings.get("rope_parameters", {})}
        alpha = rope.get("alpha")
        if rope.get("rope_type", rope.get("type")) != "dynamic" or not alpha:
            return super().read(settings)
        dim = Heads().read(settings)["head_dim"]
        theta = rope.get("rope_theta", settings.get("rope_theta", self.theta))
        if dim is None:
            return {}
        return {"rope_theta": theta * alpha ** (dim / (dim - 2))}


HUNYUAN_V1_DENSE = Family(
    architecture="HunYuanDenseV1ForCausalLM",
    leaves={
        **LEAVES,
        **ATTENTION_BIASES,
        **{
            f"layers/attn/{name[0]}_norm/scale": plain(
                f"model.layers.{{}}.self_attn.{name}_layernorm.weight"
            )
            for name in ("query", "key")
        },
    },
    parts=(SIZES, Heads(), Activation(), Biases(), _StretchedRope()),
    features={"qk_norm": True, "qk_norm_after": True},
    defaults={**DEFAULTS, "rms_norm_eps": 1e-5, "attention_bias": False},
    only={
        "mlp_bias": (False, None),
        "norm_type": ("rms", None),
        "use_cla": (False, None),
        "use_qk_norm": (True, None),
        "use_rotary_pos_emb": (True, None),
        "position_embedding_xdrope": (False, None),
    },
    settings_aside=frozenset(
        {
            "org_vocab_size",
            "attention_head_dim",
            "cla_share_factor",
            "dense_list",
            "pool_type",
            "enable_lm_head_fp32",
        }
    ),
    gguf=Gguf("hunyuan-dense"),
)
