"""The settings that encoders have and decoders have not: kinds of tokens, the padding."""

from __future__ import annotations

from jlora.models._families._settings import Same

SIZES = Same(
    {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_length": "max_position_embeddings",
        "types": "type_vocab_size",
        "norm_epsilon": "layer_norm_eps",
    }
)
PADDING = Same({"padding": "pad_token_id"})  # behind whose number positions begin
