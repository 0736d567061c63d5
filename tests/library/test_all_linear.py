"""What ``targets="all-linear"`` means in models that return more than scores."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jlora

TOKENS = jnp.ones((2, 5), "int32")
X = jax.ShapeDtypeStruct((2, 5, 8), "float32")
BLOCK = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "up": (8, 16), "down": (16, 8)}
PARAMS = {
    "embed": jnp.ones((13, 8)),
    "blocks": [{name: jnp.ones(shape) for name, shape in BLOCK.items()} for _ in range(2)],
    "norm": jnp.ones(8),
    "head": jnp.ones((8, 13)),
    "head_bias": jnp.ones(13),
}
LINEAR = {f"blocks/{at}/{name}" for at in range(2) for name in BLOCK}


def block(p, x):
    """(the block's output, its key-value cache)."""
    q, k, v = (x @ p[name] for name in "qkv")
    mixed = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k)) @ v
    x = x + mixed @ p["o"]
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"], (k, v)


def normed(x, scale):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True)) * scale


def hidden(p, tokens):
    x, caches = p["embed"][tokens], []
    for each in p["blocks"]:
        x, cache = block(each, x)
        caches.append(cache)
    return normed(x, p["norm"]), caches


def scores(p, tokens):
    return hidden(p, tokens)[0] @ p["head"] + p["head_bias"]


def with_cache(p, tokens):
    x, caches = hidden(p, tokens)
    return x @ p["head"], caches


def with_hidden(p, tokens):
    x, _ = hidden(p, tokens)
    return x @ p["head"], x


def with_every_hidden(p, tokens):
    x, all_of_them = p["embed"][tokens], []
    for each in p["blocks"]:
        x = jax.nn.gelu(x @ each["up"]) @ each["down"]  # no residual: one product made it
        all_of_them.append(x)
    return x @ p["head"], all_of_them


def loss_by_one_hot(p, tokens):
    logp = jax.nn.log_softmax(scores(p, tokens))
    return -jnp.einsum("btv,btv->", jax.nn.one_hot(tokens, 13), logp)


def loss_in_chunks(p, tokens):
    x, _ = hidden(p, tokens)

    def chunk(total, x):
        return total + jax.nn.logsumexp(x @ p["head"] + p["head_bias"]), None

    return lax.scan(chunk, 0.0, x)[0]


def generated(p, tokens):
    """Each token is the likeliest after the one before."""

    def step(tokens, _):
        following = scores(p, tokens).argmax(-1)
        return following, following

    return lax.scan(step, tokens, length=3)[1]


@pytest.mark.parametrize(
    "fn",
    [scores, with_cache, with_hidden, loss_by_one_hot, loss_in_chunks, generated],
    ids=lambda fn: fn.__name__,
)
@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.checkpoint], ids=["", "jit", "remat"])
def test_what_else_a_function_returns_takes_no_layer_out(fn, wrap):
    axes = jlora.trace_axes(wrap(fn), PARAMS, TOKENS)
    assert axes.linear == LINEAR
    assert axes.left_out == {
        "embed": "rows are looked up in it",
        "head": "its product alone makes a result of the function: an output head",
    }


def test_layers_whose_products_are_returned_are_read_by_other_products():
    axes = jlora.trace_axes(with_every_hidden, PARAMS, TOKENS)
    assert axes.linear == {f"blocks/{at}/{name}" for at in range(2) for name in ("up", "down")}


def experts(p, x):
    """(scores, a loss that balances the experts): the router's product alone makes the loss."""
    routed = jax.nn.softmax(x @ p["router"])
    each = jnp.einsum("btd,edf->btef", x, p["experts"])
    x = x + jnp.einsum("btef,bte->btf", each, routed)
    x = x + (routed[..., :1] * (x @ p["shared"]))
    return normed(x, p["norm"]) @ p["head"], (routed.mean((0, 1)) ** 2).sum()


def test_a_router_is_linear_unless_excluded():
    params = {
        "router": jnp.ones((8, 3)),
        "experts": jnp.ones((3, 8, 8)),
        "shared": jnp.ones((8, 8)),
        "norm": jnp.ones(8),
        "head": jnp.ones((8, 13)),
    }
    axes = jlora.trace_axes(experts, params, X)
    assert axes.linear == {"router", "experts", "shared"}
    config = jlora.LoraConfig(targets="all-linear", exclude="router", rank=2)
    assert set(jlora.split(params, config, jax.random.key(0), axes=axes)[1]) == {
        "experts",
        "shared",
    }


@pytest.mark.parametrize(
    "rows",
    [
        lambda table, ids: table[ids],
        lambda table, ids: table[ids] * 8**0.5,
        lambda table, ids: jnp.take(table, ids, axis=0, mode="clip") / 2,
        lambda table, ids: jax.vmap(lambda row: lax.dynamic_index_in_dim(table, row, 0, False))(
            ids.reshape(-1)
        ).reshape(2, 5, 8),
        lambda table, ids: table.astype("bfloat16")[ids].astype("float32"),
    ],
)
def test_rows_that_go_straight_into_a_product_are_an_embedding(rows):
    params = {"table": jnp.ones((13, 8)), "w": jnp.ones((8, 8)), "head": jnp.ones((8, 3))}
    fn = lambda p, ids: rows(p["table"], ids) @ p["w"] @ p["head"]  # noqa: E731
    axes = jlora.trace_axes(fn, params, TOKENS)
    assert axes.linear == {"w"}
    assert axes["table"] == jlora.Axes()


def test_a_table_that_is_only_looked_up_gets_its_axes():
    def fn(p, ids):
        rows = jax.vmap(lambda i: p["table"][i])(ids) + p["places"][jnp.arange(5)]
        return jnp.tanh(rows).sum() + p["turned"][:, ids].sum()

    shapes = {"table": (13, 8), "places": (7, 8), "turned": (8, 13)}
    axes = jlora.trace_axes(fn, {k: jnp.ones(v) for k, v in shapes.items()}, TOKENS)
    assert dict(axes) == {
        "table": jlora.Axes(),
        "places": jlora.Axes(),
        "turned": jlora.Axes((1,), (0,)),
    }
    assert axes.linear == frozenset()


def test_what_would_be_merged_at_every_use_is_left_out_and_why_is_told():
    def fn(p, x):
        x = lax.conv_general_dilated(
            x, p["depthwise"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=8,
        )  # fmt: skip
        x = jax.nn.gelu(x @ p["up"]) @ p["down"]
        return x @ p["head"]

    shapes = {"depthwise": (3, 1, 8), "up": (8, 16), "down": (16, 8), "head": (8, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    axes = jlora.trace_axes(fn, params, X)
    assert axes.linear == {"up", "down"}
    assert axes["depthwise"] == jlora.Axes((0, 1), (2,))  # a pattern may still name it
    assert "lift would merge it: the kernel is so small" in axes.left_out["depthwise"]

    config = jlora.LoraConfig(targets="all-linear", rank=2)
    frozen, lora = jlora.split(params, config, jax.random.key(0), axes=axes)
    for told in (jlora.explain(fn, frozen, lora, X), jlora.summary(frozen, lora, axes)):
        assert str(told).splitlines()[-1] == (
            "left out by all-linear: depthwise (lift would merge it: the kernel is so small "
            "(depthwise?) that merging it costs less), head (its product alone makes a result of "
            "the function: an output head)"
        )
    _, all_of_them = jlora.split(
        params, jlora.LoraConfig(targets=".", rank=2), jax.random.key(0), axes=axes
    )
    assert not jlora.explain(fn, params, all_of_them, X).left_out


def test_two_weights_that_meet_are_both_linear():
    params = {"u": jnp.ones((8, 2)), "v": jnp.ones((2, 8)), "head": jnp.ones((8, 3))}
    fn = lambda p, x: jnp.tanh(x @ (p["u"] @ p["v"])) @ p["head"]  # noqa: E731
    axes = jlora.trace_axes(fn, params, X)
    assert axes.linear == {"u", "v"}
    assert dict(axes) == {
        "u": jlora.Axes((1,), (0,)),  # its columns meet v's rows
        "v": jlora.Axes(),
        "head": jlora.Axes(),
    }
