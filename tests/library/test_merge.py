"""`merge` and `unmerge`: between two trees and one, in float32, and only where they fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import adapted

import jlora

KEY = jax.random.key(0)


def weight(*shape, dtype="float32", seed=1):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def bits(array):
    return np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_split_then_merge_gives_every_bit_back(dtype):
    awkward = weight(7, 11, dtype=dtype).at[0].set(-0.0).at[1].set(jnp.inf).at[2].set(1e-7)
    params = {"w": awkward, "stack": weight(2, 5, 7, dtype=dtype), "ids": jnp.arange(3)}
    axes = {"w": jlora.Axes(), "stack": jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))}
    frozen, lora = jlora.split(params, jlora.LoraConfig(targets=".", rank=2), KEY, axes=axes)
    assert set(lora) == {"w", "stack"}
    for merged in (jlora.merge(frozen, lora), jax.jit(jlora.merge)(frozen, lora)):
        assert jax.tree.structure(merged) == jax.tree.structure(params)
        for path, leaf in params.items():
            assert merged[path].dtype == leaf.dtype
            assert np.array_equal(bits(merged[path]), bits(leaf))


LAYOUTS = {
    "plain": ((7, 11), jlora.Axes(), "ir,ro->io"),
    "torch": ((11, 7), jlora.Axes(inputs=(1,), outputs=(0,)), "ir,ro->oi"),
    "query": ((7, 4, 5), jlora.Axes(inputs=(0,), outputs=(1, 2)), "ir,rhd->ihd"),
    "out": ((4, 5, 7), jlora.Axes(inputs=(0, 1), outputs=(2,)), "hdr,ro->hdo"),
    "split heads": ((4, 7, 5), jlora.Axes(inputs=(1,), outputs=(0, 2)), "ir,rhd->hid"),
    "scanned": ((2, 7, 11), jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,)), "lir,lro->lio"),
    "inner stack": ((7, 3, 11), jlora.Axes(stack=(1,), inputs=(0,), outputs=(2,)), "eir,ero->ieo"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_adds_scaling_times_a_b(layout):
    shape, axes, einsum = LAYOUTS[layout]
    params = {"w": weight(*shape)}
    frozen, lora = adapted(params, axes={"w": axes}, alpha=5.0)
    a, b = (np.asarray(factor, "float64") for factor in (lora["w"].a, lora["w"].b))
    expected = np.asarray(params["w"], "float64") + 5.0 / 3 * np.einsum(einsum, a, b)
    np.testing.assert_allclose(jlora.merge(frozen, lora)["w"], expected, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_merge_sums_in_float32_and_casts_once():
    params = {"w": weight(64, 48, dtype="bfloat16")}
    frozen, lora = adapted(params, rank=8)
    a, b = (np.asarray(factor, "float64") for factor in (lora["w"].a, lora["w"].b))
    exact = np.asarray(params["w"], "float64") + float(lora["w"].scaling) * (a @ b)
    merged = jlora.merge(frozen, lora)["w"]
    assert merged.dtype == jnp.bfloat16
    # half a unit in the last of eight places, and a little for float32's own rounding
    off = np.abs(np.asarray(merged, "float64") - exact) / np.abs(exact)
    assert off.max() <= 2**-8 * 1.001


def test_a_small_delta_survives_a_bfloat16_sum_of_several_terms():
    """Each is below bfloat16's rounding of 1, together they are above it."""
    node = jlora.LoraWeight(
        a=jnp.ones((1, 8)), b=jnp.full((8, 1), 2e-3), scaling=jnp.float32(1), axes=jlora.Axes()
    )
    frozen = {"w": jnp.ones((1, 1), "bfloat16")}
    assert jlora.merge(frozen, {"w": node})["w"] == jnp.bfloat16(1 + 16e-3)


def test_unmerge_takes_off_what_merge_added():
    params = {"w": weight(7, 11), "half": weight(7, 11, dtype="bfloat16"), "bias": weight(11)}
    frozen, lora = adapted(params)
    back = jlora.unmerge(jlora.merge(frozen, lora), lora)
    np.testing.assert_allclose(back["w"], params["w"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        *(np.asarray(tree["half"], "float32") for tree in (back, params)), rtol=0, atol=2**-6
    )
    assert np.array_equal(back["bias"], params["bias"])


def test_merge_works_under_grad_and_vmap():
    frozen, lora = adapted({"w": weight(7, 11)})
    grads = jax.grad(lambda lora: jlora.merge(frozen, lora)["w"].sum())(lora)
    assert grads["w"].scaling == 0  # never trained, whatever the optimizer
    scaling = float(lora["w"].scaling)
    np.testing.assert_allclose(
        grads["w"].b, np.tile(scaling * lora["w"].a.sum(0)[:, None], 11), rtol=1e-5
    )
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), lora)
    both = jax.vmap(jlora.merge, in_axes=(None, 0))(frozen, many)
    np.testing.assert_allclose(both["w"][0], jlora.merge(frozen, lora)["w"], rtol=1e-6)
    second = jax.tree.map(lambda leaf: 2 * leaf, lora)
    np.testing.assert_allclose(both["w"][1], jlora.merge(frozen, second)["w"], rtol=1e-6)


def test_a_fresh_adapter_has_gradients_for_b():
    frozen, lora = jlora.split({"w": weight(7, 11)}, jlora.LoraConfig(targets="w", rank=2), KEY)
    grads = jax.grad(lambda lora: jlora.merge(frozen, lora)["w"].sum())(lora)
    assert np.abs(grads["w"].b).min() > 0
    assert not np.asarray(grads["w"].a).any()
    assert grads["w"].scaling == 0


def test_numpy_leaves_merge_as_well():
    frozen, lora = adapted({"w": np.asarray(weight(7, 11)), "steps": 3})
    merged = jlora.merge(frozen, lora)
    assert merged["steps"] == 3
    assert np.abs(np.asarray(merged["w"]) - frozen["w"]).max() > 0.01


def test_all_misfits_between_the_trees_are_told_at_once():
    _, lora = adapted({"q_proj": weight(7, 11), "gone": weight(7, 11), "stacked": weight(7, 11)})
    lora["stacked"] = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), lora["stacked"])
    lora["bias"] = jnp.ones(3)
    params = {"q_proj": weight(11, 7), "stacked": weight(7, 11), "bias": weight(3)}
    for change in (jlora.merge, jlora.unmerge, jlora.lift(lambda p: p)):
        with pytest.raises(ValueError, match="the adapter does not fit the parameters") as error:
            change(params, lora)
        said = str(error.value)
        assert "q_proj: the adapter is for shape (7, 11), the leaf has (11, 7)" in said
        assert "gone: no such leaf. The nearest: " in said
        assert "bias: expected a LoraWeight, got ArrayImpl" in said
        assert "stacked: a has 3 dimensions, but 2 were expected" in said
        assert "Stacked adapters go through jax.vmap" in said


def test_parameters_in_the_adapters_place_are_told_as_such():
    params = {"q_proj": weight(7, 11), "head": {"kernel": weight(11, 5)}}
    frozen, lora = adapted(params, targets="q_proj")
    lifted = jlora.lift(lambda p, x: x @ p["q_proj"])
    said = r"expected the second result of split, .* got dict with head, q_proj\. "
    for change in (jlora.merge, jlora.unmerge, lambda f, lo: lifted(f, lo, weight(3, 7))):
        with pytest.raises(ValueError, match=said):
            change(lora, frozen)
    with pytest.raises(ValueError, match="the lora dict that split returns, got ArrayImpl"):
        lifted(frozen, weight(3, 7))  # lora forgotten


def test_a_tree_with_one_level_more_has_the_leaf_itself_as_the_nearest():
    params = {"layers": {"attn": {"key": weight(7, 11)}}}
    _, lora = adapted(params, targets="key")
    variables = {"layers": {"attn": {"keys": weight(7, 11)}}, "params": params}
    with pytest.raises(ValueError, match="The nearest: params/layers/attn/key, "):
        jlora.merge(variables, lora)


def test_a_node_says_its_rank_and_shape():
    _, lora = adapted({"w": weight(4, 7, 5)}, axes={"w": jlora.Axes((1,), (0, 2))})
    assert (lora["w"].rank, lora["w"].shape) == (3, (4, 7, 5))
    assert dataclasses.replace(lora["w"], a=jnp.ones((7, 2))).rank == 2
