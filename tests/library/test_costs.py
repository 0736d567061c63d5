"""Law 4: the compiled lifted step costs what the same step written by hand costs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jlora

LAYERS, WIDTH, INNER, TOKENS = 6, 96, 224, 160
KEY = jax.random.key(0)
PARAMS = {
    "up": jax.random.normal(KEY, (LAYERS, WIDTH, INNER)) * 0.1,
    "down": jax.random.normal(KEY, (LAYERS, INNER, WIDTH)) * 0.1,
    "head": jax.random.normal(KEY, (WIDTH, 352)) * 0.1,
}
X = jax.random.normal(KEY, (TOKENS, WIDTH))


pytestmark = pytest.mark.usefixtures("compiled_as_ever")


def plain(w, x):
    return x @ w


def by_hand(weights, x):
    w, a, b, scaling = weights
    return x @ w + (scaling * (x @ a)) @ b


def model(product, params, x, remat, scanned):
    """A residual network whose every product goes through ``product``."""

    def layer(x, weights):
        hidden = jax.nn.gelu(product(weights["up"], x))
        return x + product(weights["down"], hidden), None

    step = jax.checkpoint(layer, prevent_cse=not scanned) if remat else layer
    stacked = {name: params[name] for name in ("up", "down")}
    if scanned:
        x, _ = lax.scan(step, x, stacked)
    else:
        for k in range(LAYERS):
            x, _ = step(x, jax.tree.map(lambda leaf, k=k: leaf[k], stacked))
    return jnp.mean(product(params["head"], x) ** 2)


def parts(frozen, lora):
    """W, A, B and the scaling side by side, to be scanned together."""

    def scaling(node):
        return jnp.broadcast_to(lax.stop_gradient(node.scaling), node.a.shape[:-2])

    return {name: (frozen[name], node.a, node.b, scaling(node)) for name, node in lora.items()}


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("remat", [True, False], ids=["remat", "kept"])
def test_a_step_costs_what_it_costs_by_hand(remat, scanned):
    def base(params, x):
        return model(plain, params, x, remat, scanned)

    axes = jlora.trace_axes(base, PARAMS, X)
    frozen, lora = jlora.split(PARAMS, jlora.LoraConfig(targets=".", rank=4), KEY, axes=axes)
    lifted = jlora.lift(base, strict=True)

    def hand(frozen, lora, x):
        return model(by_hand, parts(frozen, lora), x, remat, scanned)

    def merged(frozen, lora, x):
        return base(jlora.merge(frozen, lora), x)

    def cost(loss):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=1))
        compiled = gradient.lower(frozen, lora, X).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    flops, temporary = cost(lifted)
    hand_flops, hand_temporary = cost(hand)
    merged_flops, _ = cost(merged)
    assert flops == pytest.approx(hand_flops, rel=0.005)
    assert temporary <= 1.02 * hand_temporary
    assert flops < 0.85 * merged_flops  # so that the measure is one: forming W + AB costs more


def test_a_lifted_forward_pass_forms_nothing_of_a_weights_size():
    frozen, lora = jlora.split(
        {"w": jnp.ones((512, 512))}, jlora.LoraConfig(targets="w", rank=2), KEY
    )
    x = jnp.ones((8, 512))
    lifted = jax.jit(jlora.lift(lambda p, x: x @ p["w"])).lower(frozen, lora, x).compile()
    assert lifted.memory_analysis().temp_size_in_bytes < 512 * 512 * 4 / 4


def test_looked_up_rows_that_meet_several_weights_are_formed_once():
    key_t, key_q, key_k = jax.random.split(KEY, 3)
    params = {
        "table": jax.random.normal(key_t, (350, WIDTH)),
        "q": jax.random.normal(key_q, (WIDTH, INNER)),
        "k": jax.random.normal(key_k, (WIDTH, INNER)),
    }
    tokens = jnp.arange(TOKENS)

    def base(params, tokens):
        rows = params["table"][tokens]
        return jnp.mean((rows @ params["q"]) ** 2 + (rows @ params["k"]) ** 2)

    axes = jlora.trace_axes(base, params, tokens)
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets=".", rank=4), KEY, axes=axes)

    def hand(frozen, lora, tokens):
        weights = parts(frozen, lora)
        w, a, b, scaling = weights["table"]
        rows = w[tokens] + scaling * a[tokens] @ b
        return jnp.mean(by_hand(weights["q"], rows) ** 2 + by_hand(weights["k"], rows) ** 2)

    def flops(loss):
        compiled = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(frozen, lora, tokens)
        return compiled.compile().cost_analysis()["flops"]

    lifted = jlora.lift(base, strict=True)
    assert flops(lifted) == pytest.approx(flops(hand), rel=0.005)


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_no_cast_copy_of_a_frozen_weight_is_kept_for_the_gradient(scanned):
    """Half-precision weights, computed with in float32: a copy of each layer would be 4 bytes."""
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), PARAMS)

    def cast(w, x):
        return x @ w.astype("float32")

    def base(params, x):
        return model(cast, params, x, False, scanned)

    axes = jlora.trace_axes(base, params, X)
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets=".", rank=4), KEY, axes=axes)

    def kept(lora):
        """What the backward pass gets from the forward pass."""
        return jax.vjp(lambda lora: jlora.lift(base, strict=True)(frozen, lora, X), lora)[1]

    weights = {params[name].size for name in ("up", "down", "head")}
    weights |= {size // LAYERS for size in weights}
    residuals = jax.tree.leaves(jax.eval_shape(kept, lora))
    assert not [leaf for leaf in residuals if leaf.size in weights and leaf.dtype == "float32"]
    assert [leaf for leaf in residuals if leaf.size in weights and leaf.dtype == "bfloat16"]


def test_rows_of_several_dimensions_have_no_activation_transposed():
    def base(params, x):
        return model(plain, params, x, remat=False, scanned=True)

    axes = jlora.trace_axes(base, PARAMS, X)
    frozen, lora = jlora.split(PARAMS, jlora.LoraConfig(targets=".", rank=4), KEY, axes=axes)

    def moved(x):
        gradient = jax.jit(jax.grad(jlora.lift(base, strict=True), argnums=1))
        return gradient.lower(frozen, lora, x).compile().cost_analysis()["bytes accessed"]

    # x A itself is, which is thin; with the activations it would be 1.11
    assert moved(X.reshape(5, 32, WIDTH)) <= 1.03 * moved(X)


def test_what_a_model_does_next_to_a_product_follows_the_base_product():
    """A bias, and the transpose that vmap makes of a product from the left, as Equinox has it."""
    w = jax.random.normal(KEY, (INNER, WIDTH))
    params = {"w": w, "bias": jnp.ones(INNER)}

    def base(params, x):
        return jnp.mean(jax.vmap(lambda x: jnp.tanh(params["w"] @ x + params["bias"]))(x) ** 2)

    axes = jlora.trace_axes(base, params, X)
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets="w", rank=4), KEY, axes=axes)

    def hand(frozen, lora, x):
        node = lora["w"]

        def one(x):
            thin = (lax.stop_gradient(node.scaling) * (x @ node.a)) @ node.b
            return jnp.tanh(frozen["w"] @ x + frozen["bias"] + thin)

        return jnp.mean(jax.vmap(one)(x) ** 2)

    def moved(loss):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(frozen, lora, X)
        return gradient.compile().cost_analysis()["bytes accessed"]

    lifted = jlora.lift(base, strict=True)
    assert moved(lifted) <= 1.005 * moved(hand)
    equations = jax.make_jaxpr(lifted)(frozen, lora, X).eqns
    names = [eqn.primitive.name for eqn in equations]
    at = names.index("dot_general")
    followers = [eqn for eqn in equations if eqn.invars[0] is equations[at].outvars[0]]
    assert [eqn.primitive.name for eqn in followers] == ["transpose"]


def test_no_scaled_copy_of_b_lies_beside_it():
    """With a high rank and few tokens B is most of what there is."""
    few = X[:8]

    def base(params, x):
        return model(plain, params, x, remat=False, scanned=True)

    axes = jlora.trace_axes(base, PARAMS, few)
    frozen, lora = jlora.split(PARAMS, jlora.LoraConfig(targets=".", rank=64), KEY, axes=axes)

    def hand(frozen, lora, x):
        return model(by_hand, parts(frozen, lora), x, remat=False, scanned=True)

    def temporary(loss):
        compiled = jax.jit(loss).lower(frozen, lora, few).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(jlora.lift(base, strict=True)) <= 1.02 * temporary(hand)


def test_a_named_product_of_dora_is_kept_once():
    """Its magnitude's gradient needs what the magnitude multiplies: that is what is kept."""
    params = {"w": PARAMS["head"], "bias": jnp.ones(352)}
    policy = jax.checkpoint_policies.save_only_these_names("product")

    def base(params, x):
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x):
            return jnp.tanh(checkpoint_name(x @ params["w"] + params["bias"], "product"))

        return layer(x).sum()

    config = jlora.LoraConfig(targets="w", rank=4, method="dora")
    frozen, lora = jlora.split(params, config, KEY)
    lifted = jlora.lift(base, strict=True)
    kept = jax.eval_shape(lambda lora: jax.vjp(lambda lora: lifted(frozen, lora, X), lora)[1], lora)
    results = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape == (TOKENS, 352)]
    assert len(results) == 1
    jaxpr = jax.make_jaxpr(jax.grad(lifted, argnums=1))(frozen, lora, X)
    with_w = str(jaxpr).count(f"f32[{TOKENS},352] = dot_general")
    assert with_w == 2  # x W and (x A) B, each of them once
