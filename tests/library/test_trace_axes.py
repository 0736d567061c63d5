"""`trace_axes` reads off how each weight is used: which dims are in, out and stacked."""

import copy
import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

import jlora

A = jlora.Axes
X = jax.ShapeDtypeStruct((5, 7), "float32")
IDS = jax.ShapeDtypeStruct((5,), "int32")

KEY = jax.random.key(0)


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in leaves.items()}


def traced(fn, params, *args):
    axes = jlora.trace_axes(fn, params, *args)
    assert isinstance(axes, jlora.TracedAxes)
    return dict(axes)


def test_attention_of_linen_has_heads_on_the_side_of_the_products():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(3, qkv_features=6)(x))
            return nn.DenseGeneral((2, 5), axis=(-2, -1), name="pool")(x)

    x = jax.ShapeDtypeStruct((2, 11, 7), "float32")
    block = Block()
    params = jax.eval_shape(block.init, jax.random.key(0), x)
    attention = "params/MultiHeadDotProductAttention_0"
    assert traced(block.apply, params, x) == {
        f"{attention}/query/kernel": A(inputs=(0,), outputs=(1, 2)),  # (7, 3, 2)
        f"{attention}/key/kernel": A(inputs=(0,), outputs=(1, 2)),
        f"{attention}/value/kernel": A(inputs=(0,), outputs=(1, 2)),
        f"{attention}/out/kernel": A(inputs=(0, 1), outputs=(2,)),  # (3, 2, 7)
        "params/pool/kernel": A(inputs=(0, 1), outputs=(2, 3)),  # (11, 7, 2, 5)
    }
    assert jlora.trace_axes(block.apply, params, x).unclear == {}


def test_a_scanned_dense_has_its_layers_as_a_stack():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(7)(x), None

    scanned = nn.scan(
        nn.remat(Step, prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=4,
    )()
    params = jax.eval_shape(scanned.init, jax.random.key(0), X, None)
    assert traced(scanned.apply, params, X, None) == {
        "params/Dense_0/kernel": A(stack=(0,), inputs=(1,), outputs=(2,)),  # (4, 7, 7)
    }


def test_a_tied_embedding_is_read_by_its_first_use():
    def fn(p, ids):
        return p["table"][ids] @ p["table"].T

    assert traced(fn, shapes(table=(13, 7)), IDS) == {"table": A(inputs=(0,), outputs=(1,))}


def test_a_lookup_followed_by_a_product_is_a_lookup():
    fn = lambda p, ids: p["table"][ids] @ p["w"]  # noqa: E731
    assert traced(fn, shapes(table=(13, 7), w=(7, 5)), IDS) == {
        "table": A(inputs=(0,), outputs=(1,)),
        "w": A(inputs=(0,), outputs=(1,)),
    }


def test_a_table_that_only_makes_logits_is_read_the_other_way():
    fn = lambda p, x: x @ p["table"].T  # noqa: E731
    assert traced(fn, shapes(table=(13, 7)), X) == {"table": A(inputs=(1,), outputs=(0,))}


def test_nnx_keeps_its_paths_and_stacks():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(13, 6, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(3, 6, decode=False, rngs=rngs)
            layers = nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs))
            self.layers = layers(rngs.split(4))

        def __call__(self, ids):
            x = self.attention(self.embed(ids))
            return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers
            )

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    axes = traced(lambda p, ids: nnx.merge(graph, p, rest)(ids), params, jnp.zeros((2, 5), int))
    assert {path.removesuffix("/value"): each for path, each in axes.items()} == {
        "embed/embedding": A(inputs=(0,), outputs=(1,)),  # (13, 6)
        "attention/query/kernel": A(inputs=(0,), outputs=(1, 2)),  # (6, 3, 2)
        "attention/key/kernel": A(inputs=(0,), outputs=(1, 2)),
        "attention/value/kernel": A(inputs=(0,), outputs=(1, 2)),
        "attention/out/kernel": A(inputs=(0, 1), outputs=(2,)),  # (3, 2, 6)
        "layers/kernel": A(stack=(0,), inputs=(1,), outputs=(2,)),  # (4, 6, 6)
    }


def test_equinox_keeps_weights_as_out_and_in():
    mlp = eqx.filter(eqx.nn.MLP(7, 3, 11, depth=1, key=jax.random.key(0)), eqx.is_array)
    static = eqx.filter(
        eqx.nn.MLP(7, 3, 11, depth=1, key=jax.random.key(0)), eqx.is_array, inverse=True
    )
    axes = traced(lambda p, x: eqx.combine(p, static)(x), mlp, jnp.ones(7))
    assert axes == {
        "layers/0/weight": A(inputs=(1,), outputs=(0,)),  # (11, 7)
        "layers/1/weight": A(inputs=(1,), outputs=(0,)),  # (3, 11)
    }


def test_experts_are_a_stack_wherever_they_stand():
    def fn(p, x):
        hidden = jnp.einsum("bi,ief->bef", x, p["up"])
        return jnp.einsum("bef,efo->beo", hidden, p["down"])

    # every expert sees every row of "up": its experts are outputs, as far as the product can tell
    assert traced(fn, shapes(up=(7, 3, 11), down=(3, 11, 5)), X) == {
        "up": A(inputs=(0,), outputs=(1, 2)),
        "down": A(stack=(0,), inputs=(1,), outputs=(2,)),
    }


def test_convolutions_contract_their_windows():
    def fn(p, x):
        return lax.conv_general_dilated(
            x, p["kernel"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )

    x = jax.ShapeDtypeStruct((2, 9, 7), "float32")
    assert traced(fn, shapes(kernel=(3, 7, 11)), x) == {"kernel": A(inputs=(0, 1), outputs=(2,))}


@pytest.mark.parametrize(
    ("shape", "fn", "axes"),
    [
        ((7, 22), lambda w, x: jnp.einsum("bi,ihd->bhd", x, w.reshape(7, 2, 11)), A((0,), (1,))),
        ((11, 7), lambda w, x: x @ w.astype("bfloat16").T, A((1,), (0,))),
        ((7, 3, 11), lambda w, x: x @ w[:, 1], A((0,), (2,), stack=(1,))),
        ((3, 7, 11), lambda w, x: x @ w[2], A((1,), (2,), stack=(0,))),
        ((3, 7, 11), lambda w, x: x @ w[jnp.int32(2)], A((1,), (2,), stack=(0,))),
        ((7, 11, 1), lambda w, x: x @ w[..., 0], A((0,), (1,), stack=(2,))),
        ((7, 11), lambda w, x: jnp.split(x @ jnp.negative(w) * 2, 11, 1), A((0,), (1,))),
        ((7, 11), lambda w, x: [x @ part for part in jnp.split(w, [2, 5], 1)], A((0,), (1,))),
        ((7, 11), lambda w, x: jax.checkpoint(lambda w: jnp.sin(x @ w))(w), A((0,), (1,))),
        ((7, 11), lambda w, x: jax.vmap(lambda row: row @ w)(x), A((0,), (1,))),
        ((3, 7, 11), lambda w, x: jax.vmap(jnp.matmul)(x[:3, None], w), A((1,), (2,), stack=(0,))),
        ((7, 7), lambda w, x: lax.fori_loop(0, 3, lambda _, x: x @ w, x), A((0,), (1,))),
        (
            (7, 7),
            lambda w, x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w.T, x),
            A((1,), (0,)),
        ),
        ((7, 11), lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: -x @ w), A((0,), (1,))),
    ],
)
def test_a_weight_is_followed_to_its_product(shape, fn, axes):
    assert traced(lambda p, x: fn(p["w"], x), shapes(w=shape), X) == {"w": axes}


def test_biases_and_scales_are_no_weights_and_not_unclear():
    def fn(p, x):
        x = (x * p["scale"]) @ p["kernel"] + p["bias"]
        heads = x.reshape(5, 3, 4) + p["head_bias"]

        def layer(x, one):
            return x * one["scale"] + one["bias"], None

        return lax.scan(layer, heads, {"scale": p["scales"], "bias": p["biases"]})

    params = shapes(
        scale=(7,), kernel=(7, 12), bias=(12,), head_bias=(3, 4), scales=(2, 4), biases=(2, 3, 4)
    )
    axes = jlora.trace_axes(fn, params, X)
    assert dict(axes) == {"kernel": A((0,), (1,))}
    assert axes.unclear == {}


def test_fused_weights_are_each_used_as_the_whole():
    def fn(p, x):
        fused = jnp.concatenate([p["q"], p["kv"].reshape(7, 8)], axis=1)
        stacked = jnp.stack([p["up"], p["gate"]])
        return x @ fused, jnp.einsum("bi,eio->ebo", x, stacked), x @ jnp.hstack([p["t"].T, p["q"]])

    params = shapes(q=(7, 3), kv=(7, 2, 4), up=(7, 5), gate=(7, 5), t=(6, 7))
    assert traced(fn, params, X) == {
        "q": A(inputs=(0,), outputs=(1,)),
        "kv": A(inputs=(0,), outputs=(1, 2)),
        "up": A(inputs=(0,), outputs=(1,)),
        "gate": A(inputs=(0,), outputs=(1,)),
        "t": A(inputs=(1,), outputs=(0,)),
    }


def test_what_is_doubtful_is_explained():
    def fn(p, x):
        padded = jnp.concatenate([p["part"], x.T], axis=1)
        return x @ padded + jnp.exp(p["gate"]).sum() + jnp.vdot(p["dot"], x)

    axes = jlora.trace_axes(
        fn, shapes(part=(7, 3), gate=(7, 3), dot=(5, 7), unused=(7, 3), bias=(3,)), X
    )
    assert axes == {}
    where = "at test_trace_axes.py:"
    assert sorted(axes.unclear) == ["dot", "gate", "part", "unused"]
    assert axes.unclear["part"].startswith(f"`concatenate` {where}")
    assert axes.unclear["gate"].startswith(f"`exp` {where}")
    assert axes.unclear["dot"] == "a product contracts all of it, or nothing"
    assert axes.unclear["unused"] == "no operation was seen to use it"


def test_a_product_written_as_a_broadcast_and_a_sum_is_doubtful():
    axes = jlora.trace_axes(lambda p, x: (x[:, :, None] * p["w"]).sum(axis=1), shapes(w=(7, 3)), X)
    assert axes == {}
    assert axes.unclear["w"].startswith("`mul` at test_trace_axes.py:")


def test_a_targeted_weight_is_never_passed_over_in_silence():
    params = {"q": jnp.ones((7, 3)), "k": jnp.ones((7, 4)), "o": jnp.ones((7, 3))}
    fn = lambda p, x: (x @ p["o"], x @ jnp.sin(p["q"]), jnp.exp(p["k"]))  # noqa: E731
    axes = jlora.trace_axes(fn, params, X)
    with pytest.warns(UserWarning, match="how it is used is not clear") as told:
        jlora.split(params, jlora.LoraConfig(targets=".", rank=2), jax.random.key(0), axes=axes)
    said = [str(each.message) for each in told]
    assert len(said) == 2
    assert any(text.startswith("q is adapted") and "`sin` at" in text for text in said)
    assert any(text.startswith("k is adapted") and "`exp` at" in text for text in said)


def test_a_dim_both_contracted_and_kept_is_told():
    fn = lambda p, x: jnp.einsum("ba,axo->bxo", x[:, :2], p["w"].reshape(2, 3, 5))  # noqa: E731
    axes = jlora.trace_axes(fn, shapes(w=(6, 5)), X)
    assert axes == {}
    assert axes.unclear == {"w": "one of its dimensions is partly contracted and partly kept"}


def test_nothing_is_computed():
    def fn(p, x):
        jax.debug.callback(lambda: pytest.fail("ran"))
        return x @ p["w"]

    assert traced(fn, {"w": jnp.ones((7, 11))}, jnp.ones((5, 7))) == {"w": A()}


def test_traced_axes_are_a_mapping_that_stays_what_it_is():
    """With axes by hand it knows still what it saw: a bias of layers is no weight."""
    params = {
        "up": jnp.ones((3, 7, 11)),
        "bias": jnp.ones((3, 11)),
        "gate": jnp.ones((11, 13)),
        "table": jnp.ones((17, 7)),
    }

    def fn(p, tokens):
        x = p["table"][tokens]

        def layer(x, weights):
            up, bias = weights
            return x, x @ up + bias

        _, each = lax.scan(layer, x, (p["up"], p["bias"]))
        return jnp.tanh(each.sum(0)) @ jnp.sin(p["gate"])

    axes = jlora.trace_axes(fn, params, jnp.zeros(5, int))
    seen = {"table": jlora.Axes(), "up": jlora.Axes((1,), (2,), (0,))}
    assert dict(axes) == {**axes} == axes == seen
    assert seen == axes
    assert (len(axes), list(axes), "gate" in axes) == (2, ["table", "up"], False)
    assert axes.get("gate") is None
    assert pickle.loads(pickle.dumps(axes)) == copy.deepcopy(axes) == axes
    assert not hasattr(axes, "__setitem__")
    other = {"gate": jlora.Axes((1,), (0,)), "table": jlora.Axes((1,), (0,))}
    for by_hand, table in ((axes | other, other["table"]), (other | axes, seen["table"])):
        assert isinstance(by_hand, jlora.TracedAxes)
        assert by_hand == {"gate": other["gate"], "table": table, "up": seen["up"]}
        assert (by_hand.linear, by_hand.left_out) == (axes.linear, axes.left_out)
        assert (list(axes.unclear), list(by_hand.unclear)) == (["gate"], [])
        config = jlora.LoraConfig(targets="up|gate|bias", rank=2)
        assert jlora.split(params, config, KEY, axes=by_hand)[1].keys() == {"up", "gate"}
        config = jlora.LoraConfig(targets="all-linear", rank=2)
        lora = jlora.split(params, config, KEY, axes=by_hand)[1]
        assert list(lora) == ["up"]
        assert "table (rows are looked up in it)" in str(jlora.summary(params, lora, by_hand))
