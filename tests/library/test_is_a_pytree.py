"""An adapter is a pytree: structures, names, transformations of trees."""

import dataclasses
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_kind import (
    IDS,
    KEY,
    LORA,
    NAMES,
    OTHER,
    PARAMS,
    assert_same,
    every_kind,
    lifted,
    model,
    normal,
)
from flax import nnx
from flax.core import freeze
from jax.flatten_util import ravel_pytree
from laws import assert_close

import jlora


def merged_by_hand(lora):
    """In numpy, each method's equation as its paper has it."""
    p = jax.tree.map(np.array, PARAMS)
    up, down = lora["up/kernel"], lora["down/kernel"]
    p["up"]["kernel"] += float(up.scaling) * np.asarray(up.a) @ np.asarray(up.b)
    p["up"]["bias"] += float(up.scaling) * np.asarray(lora["up/bias"].delta)
    p["down"]["kernel"] += float(down.scaling) * np.asarray(down.a) @ np.asarray(down.b)
    norms = np.linalg.norm(p["down"]["kernel"], axis=0)
    p["down"]["kernel"] *= np.asarray(down.magnitude) / norms
    p["embed"][[1, 5]] += np.asarray(lora["embed"].delta)
    p["norm"] = np.asarray(lora["norm"].value)
    return p


def test_there_is_one_node_of_each_kind():
    kinds = {
        "up/kernel": jlora.LoraWeight, "up/bias": jlora.BiasDelta, "norm": jlora.WholeWeight,
        "embed": jlora.TokenRows, "down/kernel": jlora.DoraWeight,
    }  # fmt: skip
    assert {path: type(node) for path, node in LORA.items()} == kinds
    assert LORA["up/kernel"].scaling == np.float32(16 / 3)
    assert_close(jlora.merge(PARAMS, LORA), merged_by_hand(LORA), 1e-6)
    merged = model(merged_by_hand(LORA), IDS)
    assert_close(lifted(PARAMS, LORA, IDS), merged)
    assert not np.allclose(merged, model(PARAMS, IDS))


def test_structures_of_two_splits_are_equal_and_hash_equal():
    for dropout in (0.0, 0.5):
        one, other = (jax.tree.structure(every_kind(seed, dropout)) for seed in (0, 7))
        assert one == other
        assert hash(one) == hash(other)


def test_static_data_tells_nodes_apart():
    across, along = jlora.Axes((0,), (1,)), jlora.Axes((1,), (0,))
    square = {"w": normal(7, 7)}
    config = jlora.LoraConfig(targets="^w|up/kernel", rank=3)
    one, other = (
        jax.tree.structure(jlora.split(square, config, KEY, axes={"w": axes})[1])
        for axes in (across, along)
    )
    assert one != other
    rows = [
        jlora.split(PARAMS, dataclasses.replace(config, tokens={"embed": tokens}), KEY)[1]
        for tokens in ((1, 5), (1, 6))
    ]
    assert jax.tree.structure(rows[0]) != jax.tree.structure(rows[1])


def test_what_is_printed_of_an_adapter_names_no_address():
    one, other = (jax.eval_shape(lambda lora=lora: lora) for lora in (LORA, OTHER))
    for tree in (one, jax.tree.structure(LORA), jax.tree.map(np.asarray, LORA)):
        assert "0x" not in repr(tree)
    assert repr(one) == repr(other)
    assert repr(jax.tree.structure(LORA)) == repr(jax.tree.structure(OTHER))


def test_adapters_of_two_splits_share_one_compiled_program():
    traces = []

    def counted(p, ids):
        traces.append(None)
        return model(p, ids)

    apply = jax.jit(jlora.lift(counted, strict=True))
    one, other = (apply(PARAMS, lora, IDS) for lora in (LORA, OTHER))
    assert len(traces) == 1
    assert not np.allclose(one, other)


def test_configurations_that_are_equal_hash_equal():
    """A configuration is a static argument of jit: an equal one of another meaning would be lost.

    The first pattern that is found holds, so that their order means something.
    """
    patterns = {"kernel": 2, "up": 3}
    one, other = (
        jlora.LoraConfig(targets="up/kernel", rank_pattern=dict(items), rank=2)
        for items in (patterns.items(), reversed(patterns.items()))
    )
    assert one.ranks_for("up/kernel") != other.ranks_for("up/kernel")
    assert one != other
    same = jlora.LoraConfig(targets="up/kernel", rank_pattern=patterns, rank=2)
    assert (same, hash(same)) == (one, hash(one))


def test_shapes_alone_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    for init in ("kaiming", "pissa", "olora"):
        for method in ("lora", "dora", *(["qalora"] if init == "kaiming" else [])):
            config = jlora.LoraConfig(
                targets="up/kernel", rank=2, init=init, method=method, train="norm", bias="lora",
                tokens={"embed": (1, 5)}, dropout=0.5,
                options={"block": 7} if method == "qalora" else {},
            )  # fmt: skip

            def split(params, config=config):
                return jlora.split(params, config, KEY)

            want = jax.eval_shape(lambda pair: pair, split(PARAMS))
            got = jax.eval_shape(split, shapes)
            assert got == want
            assert jax.eval_shape(jlora.merge, *got) == shapes
            outputs = jax.eval_shape(jlora.lift(model, strict=True), *got, IDS)
            assert (outputs.shape, outputs.dtype) == ((3, 4, 7), "float32")


def test_leaves_are_named_by_path_and_field():
    def name(path, _):
        return jax.tree_util.keystr(path, simple=True, separator="/")

    named = jax.tree_util.tree_map_with_path(name, LORA)
    assert jax.tree.leaves(named) == NAMES
    kernel = {"layers": {"attn": {"q_proj": {"kernel": normal(7, 5)}}}}
    _, lora = jlora.split(kernel, jlora.LoraConfig(targets="q_proj", rank=2), KEY)
    named = jax.tree_util.tree_map_with_path(name, lora)
    assert named["layers/attn/q_proj/kernel"].a == "layers/attn/q_proj/kernel/a"


@pytest.mark.parametrize("mapping", [freeze, OrderedDict, nnx.State], ids=lambda m: m.__name__)
def test_any_mapping_of_nodes_is_an_adapter(mapping):
    lora = mapping(LORA)
    assert_close(lifted(PARAMS, lora, IDS), model(jlora.merge(PARAMS, lora), IDS))
    assert_same(jlora.merge(PARAMS, lora), jlora.merge(PARAMS, LORA))
    assert dict(jlora.mask(lora)) == jlora.mask(LORA)
    assert str(jlora.summary(PARAMS, lora)) == str(jlora.summary(PARAMS, LORA))


def test_a_list_of_adapters_transposes_into_an_adapter_of_lists():
    listed = jax.tree.transpose(jax.tree.structure([0, 0]), jax.tree.structure(LORA), [LORA, OTHER])
    stacked = jax.tree.map(jnp.stack, listed, is_leaf=lambda leaf: isinstance(leaf, list))
    assert_same(stacked, jax.tree.map(lambda *leaves: jnp.stack(leaves), LORA, OTHER))


def test_it_is_one_vector_and_an_adapter_again():
    vector, unravel = ravel_pytree(LORA)
    assert vector.shape == (sum(leaf.size for leaf in jax.tree.leaves(LORA)),)
    assert_same(unravel(vector), LORA)


def test_splits_are_drawn_side_by_side():
    """One for each key of a batch, each as if it were drawn alone."""
    config = jlora.LoraConfig(targets="kernel", rank=3, train="norm", dropout=0.5)
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: jlora.split(PARAMS, config, key)[1])(keys)
    alone = [jlora.split(PARAMS, config, key)[1] for key in keys]
    assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), 1e-6)
    assert not np.array_equal(together["up/kernel"].a[0], together["up/kernel"].a[1])
