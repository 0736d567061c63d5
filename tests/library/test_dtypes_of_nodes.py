"""What trains is float32 or as wide as its weight, whatever JAX would take by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import example, trained

import jlora

example("hira"), example("vera")
KEY = jax.random.key(0)
AXES = {"kernel": jlora.Axes((0,), (1,)), "table": jlora.Axes((0,), (1,))}


def params(dtype):
    draw = np.random.default_rng(0).normal
    shapes = {"kernel": (7, 5), "bias": (5,), "table": (9, 4)}
    return {path: jnp.asarray(draw(size=shape), dtype) for path, shape in shapes.items()}


CONFIGS = {
    "lora": {},
    "dora": {"method": "dora"},
    "qalora": {"method": "qalora", "options": {"block": 7}},
    "hira": {"method": "hira"},
    "whole": {"train": "table"},
    "rows": {"tokens": {"table": (1, 3)}},
    "bias": {"bias": "lora"},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_64_bits_nodes_are_as_wide_as_their_weights_ask(name, dtype):
    with jax.enable_x64(True):
        tree = params(dtype)
        config = jlora.LoraConfig(targets="kernel", rank=2, **CONFIGS[name])
        frozen, lora = jlora.split(tree, config, KEY, axes=AXES)
        lora = trained(lora)
        wide = "float64" if dtype == "float64" else "float32"
        for path, node in lora.items():
            for field in node.trainable:
                its = config.dtype if field in ("a", "b") else wide
                assert getattr(node, field).dtype == its, (path, field)
            if not isinstance(node, jlora.WholeWeight | jlora.TokenRows):
                assert node.scaling.dtype == "float32"
        for path, leaf in jlora.merge(frozen, lora).items():
            assert (leaf.dtype, leaf.shape) == (dtype, tree[path].shape), path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["lora", "qalora", "rows", "bias"])
def test_in_64_bits_what_is_combined_is_as_wide_as_it_was(name, dtype):
    with jax.enable_x64(True):
        config = jlora.LoraConfig(targets="kernel", rank=2, **CONFIGS[name])
        _, one = jlora.split(params(dtype), config, KEY, axes=AXES)
        one = trained(one)
        for path, node in jlora.combine([one, one], [0.5, 2.0]).items():
            for field in (*node.trainable, *({"scaling"} & vars(node).keys())):
                assert getattr(node, field).dtype == getattr(one[path], field).dtype, (path, field)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_in_64_bits_what_is_added_to_a_narrow_weight_is_no_wider_than_float32(dtype):
    with jax.enable_x64(True):
        for name in ("lora", "qalora", "bias", "rows"):
            config = jlora.LoraConfig(targets="kernel", rank=2, **CONFIGS[name])
            frozen, lora = jlora.split(params(dtype), config, KEY, axes=AXES)
            for path, node in lora.items():
                for leaf in jax.tree.leaves(node.adapt(frozen[path], {})):
                    assert leaf.dtype in (dtype, "float32"), (path, leaf.dtype)


def test_in_64_bits_a_scaling_by_layer_is_float32():
    with jax.enable_x64(True):
        axes = {"kernel": jlora.Axes((1,), (2,), stack=(0,))}
        config = jlora.LoraConfig(targets="kernel", rank_pattern={"kernel": (1, 2, 2)})
        _, lora = jlora.split({"kernel": jnp.ones((3, 7, 5))}, config, KEY, axes=axes)
        assert (lora["kernel"].scaling.shape, lora["kernel"].scaling.dtype) == ((3, 2), "float32")


def test_an_elementwise_form_is_computed_in_float32_and_cast_once():
    """HiRA in bfloat16, whose products and sums would round four times."""
    tree = params("bfloat16")
    config = jlora.LoraConfig(targets="kernel", rank=2, method="hira")
    frozen, lora = jlora.split(tree, config, KEY, axes=AXES)
    lora = trained(lora)
    node = lora["kernel"]
    a, b = (np.asarray(value, "float32") for value in (node.a, node.b))
    exact = np.asarray(tree["kernel"], "float32") * (1 + np.float32(node.scaling) * (a @ b))
    merged = np.asarray(jlora.merge(frozen, lora)["kernel"], "float32")
    np.testing.assert_allclose(merged, exact, rtol=2**-8)  # one rounding to 8 bits
    with jax.enable_x64(True):  # float64 deltas are no reason to compute in float32
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), (frozen, lora))
        got = jlora.merge(*wide)["kernel"]
        assert got.dtype == "float64"
        a, b, w = (
            np.asarray(v, "float64")
            for v in (wide[1]["kernel"].a, wide[1]["kernel"].b, wide[0]["kernel"])
        )
        want = w * (1 + float(node.scaling) * (a @ b))
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12)


@pytest.mark.parametrize("vocabulary", [0, 1])
def test_rows_are_those_of_the_dimension_that_holds_the_vocabulary(vocabulary):
    tree = {"kernel": jnp.ones((7, 5)), "table": jnp.arange(20.0).reshape(4, 5)}
    axes = AXES | {"table": jlora.Axes((vocabulary,), (1 - vocabulary,))}
    config = jlora.LoraConfig(targets="kernel", rank=1, tokens={"table": (1, 3)})
    frozen, lora = jlora.split(tree, config, KEY, axes=axes)
    moved = trained(lora)
    assert moved["table"].vocabulary == vocabulary
    changed = np.asarray(jlora.merge(frozen, moved)["table"] - frozen["table"])
    assert np.flatnonzero(np.abs(changed).sum(1 - vocabulary)).tolist() == [1, 3]
