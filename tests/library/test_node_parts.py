import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import extend

STACKED = jlora.Axes(inputs=(1,), outputs=(2,), stack=(0,))
EXPERTS = jlora.Axes(inputs=(3,), outputs=(2,), stack=(0, 1))


def random_like(tree):
    return jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) if x.ndim else x, tree
    )


def node_of(shape, axes=None, **options):
    weight = jax.random.normal(jax.random.key(0), shape)
    config = jlora.LoraConfig(**{"targets": "w", "rank": 3, **options})
    _, lora = jlora.split(
        {"w": weight, "other": jnp.ones((7, 5))},
        config,
        jax.random.key(1),
        axes={"w": axes} if axes else None,
    )
    node = lora["w"]
    fields = {name: random_like(getattr(node, name)) for name in node.trainable}
    return weight, dataclasses.replace(node, **fields)


@pytest.mark.parametrize(
    ("shape", "axes", "dim", "options"),
    [
        ((5, 7, 11), STACKED, 0, {"rank_pattern": {"w": (3, 1, 0, 2, 3)}}),
        ((5, 7, 11), STACKED, 0, {"method": "dora", "alpha_pattern": {"w": (1, 2, 3, 4, 5)}}),
        ((5, 2, 7, 11), EXPERTS, 1, {"method": "dora"}),
        ((5, 6, 11), STACKED, 0, {"method": "qalora", "options": {"block": 2}}),
        ((5, 6, 11), STACKED, 2, {"method": "qalora", "options": {"block": 2}}),
        ((5, 7), None, 0, {}),  # the dimension that is taken apart is an input
        ((5, 7, 11), None, 0, {"targets": "other", "train": "w"}),
        ((5, 7), None, 0, {"targets": "other", "tokens": {"w": (4, 1)}}),  # it is the vocabulary
        ((5, 7), None, 1, {"targets": "other", "tokens": {"w": (4, 1)}}),
    ],
)
def test_the_parts_merged_are_the_parts_of_the_merged(shape, axes, dim, options):
    weight, node = node_of(shape, axes, **options)
    merged = jax.jit(lambda node, weight: node.merged(weight))
    whole = merged(node, weight)
    assert np.abs(whole - weight).max() > 0.1
    for at in range(shape[dim]):
        slice_of = jax.lax.slice_in_dim(weight, at, at + 1, axis=dim)
        part = node.part(dim, at)
        assert part.misfit(slice_of.shape) is None
        want = jax.lax.slice_in_dim(whole, at, at + 1, axis=dim)
        np.testing.assert_allclose(merged(part, slice_of), want, rtol=1e-6, atol=1e-6)


def test_the_inputs_of_dora_are_not_taken_apart():
    _, node = node_of((5, 7, 11), STACKED, method="dora")
    with pytest.raises(ValueError, match="dimension 1 can't be taken apart: DoRA's norms are over"):
        node.part(1, 0)


def test_each_kind_says_what_it_is_in_the_peft_format():
    params = {
        "table": jnp.ones((13, 7)),
        "dense": {"kernel": jnp.ones((7, 11)), "bias": jnp.ones(11)},
        "head": jnp.ones((11, 5)),
    }
    config = jlora.LoraConfig(
        targets="kernel", method="dora", rank=2, bias="lora", train="head", tokens={"table": (3, 9)}
    )
    _, lora = jlora.split(params, config, jax.random.key(0))
    weight, bias = lora["dense/kernel"], lora["dense/bias"]
    form = weight.peft_form()
    for name in ("a", "b", "scaling", "magnitude"):
        assert getattr(form, name) is getattr(weight, name)
    assert bias.peft_form().delta is bias.delta
    assert bias.peft_form().scaling is bias.scaling
    assert lora["head"].peft_form().value is lora["head"].value
    rows = lora["table"].peft_form()
    assert rows.delta is lora["table"].delta
    assert (rows.tokens, rows.vocabulary) == ((3, 9), 0)
    plain = jlora.split(params, jlora.LoraConfig(targets="kernel", rank=2), jax.random.key(0))[1]
    form = plain["dense/kernel"].peft_form()
    for name in ("a", "b", "scaling"):
        assert getattr(form, name) is getattr(plain["dense/kernel"], name)
    assert form.magnitude is None


def test_shared_factors_have_no_dimensions_of_a_weight():
    factor = extend.SharedFactor(jnp.ones((3, 5)))
    assert factor.dimensions() == {"value": (extend.RANK, extend.RANK)}


def times_one_and(w, delta):
    return w * (1 + delta)


def test_an_entry_by_entry_form_of_a_float64_weight_is_computed_in_float64():
    w = np.random.default_rng(0).standard_normal((7, 11))
    a, b = jnp.ones((7, 2), "float32"), jnp.zeros((2, 11), "float32")
    product = extend.Product(extend.Factor(a, (0, extend.RANK)), extend.Factor(b, (extend.RANK, 1)))
    with jax.enable_x64(True):
        got = extend.Elementwise((product,), times_one_and).merged(jnp.asarray(w))
        np.testing.assert_array_equal(got, w)  # no entry was rounded to float32


def test_factors_of_two_ranks_fit_no_leaf():
    _, node = node_of((7, 5))
    assert node.misfit((7, 5)) is None
    longer = dataclasses.replace(node, b=jnp.ones((4, 5)))
    assert longer.misfit((7, 5)) == "A has 3 columns, B has 4 rows: expected one rank"
    assert "is for shape (7, 5), the leaf has (5, 7)" in longer.misfit((5, 7))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"method": "dora", "dropout": 0.5}])
def test_dimensions_name_every_array_of_a_node(options):
    _, node = node_of((5, 7, 11), STACKED, **options)
    arrays = {
        field.name
        for field in dataclasses.fields(node)
        if isinstance(getattr(node, field.name), jax.Array)
    }
    assert node.dimensions().keys() == arrays


def test_what_was_learned_since_a_start_has_the_scalings_of_each_layer_twice():
    """With two dimensions of stacks as with one."""
    weight, node = node_of((5, 2, 7, 11), EXPERTS)
    scaling = jnp.arange(30.0).reshape(5, 2, 3)
    now = dataclasses.replace(node, scaling=scaling)
    start = dataclasses.replace(now, a=now.a + 1)
    since = now.since(start)
    assert since.scaling.shape == (5, 2, 6)
    want = np.asarray(now.merged(weight)) - np.asarray(start.merged(weight))
    np.testing.assert_allclose(since.merged(weight) - weight, want, rtol=1e-3, atol=1e-3)
