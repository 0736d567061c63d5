"""What holds of every family's program, by its shapes alone."""

import jax
import jax.numpy as jnp
from family_settings import abstract_params, config_of
from family_trees import TREES

import jlora
from jlora.models import Decoder


def check_factored(family):
    """Adapters on every linear weight stay factored under remat and in the gradient."""
    config = config_of(family)
    params, tokens = abstract_params(config), jax.ShapeDtypeStruct((2, 9), jnp.int32)

    def loss(params, tokens):
        return Decoder(config, "full").apply({"params": params}, tokens).mean()

    axes = jlora.trace_axes(loss, params, tokens)
    narrow = {"shared_gate": 1} if any("shared_gate" in path for path in TREES[family]) else {}
    targets = "^(?!head/).*/kernel"
    lora_config = jlora.LoraConfig(targets=targets, rank=2, rank_pattern=narrow)
    split = lambda params: jlora.split(params, lora_config, jax.random.key(0), axes=axes)  # noqa: E731
    frozen, lora = jax.eval_shape(split, params)
    kernels = {path for path in TREES[family] if path.endswith("kernel")}
    assert set(lora) == kernels - {"head/kernel"}
    report = jlora.explain(loss, frozen, lora, tokens)
    assert ({use.path for use in report.uses}, report.materialised) == ({*lora}, 0)
    step = jax.value_and_grad(jlora.lift(loss, strict=True), argnums=1)
    assert jax.eval_shape(step, frozen, lora, tokens)[1].keys() == lora.keys()


def check_half_precision(family):
    """Parameters of half precision give hidden states of theirs and float32 scores."""
    config = config_of(family)
    narrow = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), abstract_params(config)
    )
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    run = lambda method: jax.eval_shape(  # noqa: E731
        lambda params, tokens: Decoder(config).apply({"params": params}, tokens, method=method),
        *(narrow, tokens),
    )
    assert run("hidden").dtype == jnp.bfloat16
    assert run("__call__").dtype == jnp.float32
