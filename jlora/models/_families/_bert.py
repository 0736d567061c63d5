"""BERT (Devlin et al. 2018, arXiv 1810.04805): the encoder that the other families vary."""

from __future__ import annotations

from collections.abc import Mapping

from jlora.models._families._encoder_settings import SIZES
from jlora.models._families._family import Family
from jlora.models._families._settings import Activation
from jlora.models._files._torch_tensors import Stored, linear, plain
from jlora.models._net._encoder_config import EncoderConfig

_LAYER = "encoder.layer.{}"
_LINEAR = {
    "layers/attn/q_proj": f"{_LAYER}.attention.self.query",
    "layers/attn/k_proj": f"{_LAYER}.attention.self.key",
    "layers/attn/v_proj": f"{_LAYER}.attention.self.value",
    "layers/attn/o_proj": f"{_LAYER}.attention.output.dense",
    "layers/mlp/up_proj": f"{_LAYER}.intermediate.dense",
    "layers/mlp/down_proj": f"{_LAYER}.output.dense",
    "pooler": "pooler.dense",
}
_NORMS = {
    "embed_norm": "embeddings.LayerNorm",
    "layers/attn_norm": f"{_LAYER}.attention.output.LayerNorm",
    "layers/mlp_norm": f"{_LAYER}.output.LayerNorm",
}
_TABLES = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
}


def leaves(prefix: str, head: Mapping[str, str]) -> dict[str, Stored]:
    """Where each leaf lies; what ``prefix`` begins is in the file's encoder, the head beside it."""
    modules = {ours: f"{prefix}.{theirs}" for ours, theirs in _LINEAR.items()} | dict(head)
    norms = {ours: f"{prefix}.{theirs}" for ours, theirs in _NORMS.items()}
    return {
        **{f"{ours}/embedding": plain(f"{prefix}.{name}.weight") for ours, name in _TABLES.items()},
        **{f"{ours}/kernel": linear(f"{name}.weight") for ours, name in modules.items()},
        **{f"{ours}/scale": plain(f"{name}.weight") for ours, name in norms.items()},
        **{f"{ours}/bias": plain(f"{name}.bias") for ours, name in {**modules, **norms}.items()},
    }


DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
ONLY = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
}
OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# of a head over the vocabulary, and of a pooler that no class of transformers makes
SETTINGS_ASIDE = frozenset(
    {"tie_word_embeddings", "directionality", "pooler_type", "pooler_fc_size"}
    | {"pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"}
)
HEADS_ASIDE = ("cls.", "lm_head.", "qa_outputs.", "classifier.")

BERT = Family(
    config=EncoderConfig,
    architecture="BertModel",
    leaves=leaves("bert", {"classifier/out_proj": "classifier"}),
    parts=(SIZES, Activation(tanh="gelu_new")),
    features={},
    defaults=DEFAULTS,
    only=ONLY,
    settings_aside=SETTINGS_ASIDE,
    heads_aside=HEADS_ASIDE,
    read_alone="the encoder",
    by_tensors={"pooler": "pooler/kernel"},
    older_names=OLDER,
    prefix="bert.",
    saved_whole="classifier",
)
