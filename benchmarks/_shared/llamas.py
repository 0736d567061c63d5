"""The llamas by their published shapes: shapes are all that a compiler reads."""

from typing import Any

import jax
import jax.numpy as jnp

from jlora.models import Decoder, DecoderConfig, Model, RopeScaling

_STRETCHED = RopeScaling(8.0, 1.0, 4.0, 8192)

LLAMAS = {
    "135M": DecoderConfig(  # SmolLM2-135M
        vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
        max_length=2048, rope_theta=1e5, tied=True,
    ),
    "1B": DecoderConfig(  # Llama-3.2-1B
        vocabulary=128256, width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp_width=8192,
        max_length=131072, rope_theta=5e5, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        tied=True,
    ),
    "8B": DecoderConfig(  # Llama-3.1-8B
        vocabulary=128256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128,
        mlp_width=14336, max_length=131072, rope_theta=5e5, rope_scaling=_STRETCHED,
    ),
    "70B": DecoderConfig(  # Llama-3.1-70B
        vocabulary=128256, width=8192, layers=80, heads=64, kv_heads=8, head_dim=128,
        mlp_width=28672, max_length=131072, rope_theta=5e5, rope_scaling=_STRETCHED,
    ),
}  # fmt: skip


def outlined(config: DecoderConfig, dtype: Any = jnp.bfloat16) -> Model:
    """A model of this shape, its parameters ShapeDtypeStructs."""

    def init():
        return Decoder(config).init(jax.random.key(0), jnp.zeros((1, 4), "int32"))["params"]

    params: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), jax.eval_shape(init)
    )
    return Model(params, config, tokenizer=None, name="llama")  # type: ignore
