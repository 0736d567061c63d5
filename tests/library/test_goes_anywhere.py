"""An adapter goes wherever a pytree goes: files, exported programs, modules of other libraries."""

import copy
import dataclasses
import io
import pickle
import warnings
from collections import OrderedDict

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.core import freeze
from flax.training.train_state import TrainState
from jax import export, lax
from jax.flatten_util import ravel_pytree
from laws import adapted, assert_close, trained

import jlora

KEY = jax.random.key(0)
IDS = jax.random.randint(jax.random.key(1), (3, 4), 0, 13)


def normal(*shape, seed=2):
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {
    "embed": normal(13, 7),
    "up": {"kernel": normal(7, 11), "bias": normal(11)},
    "down": {"kernel": normal(11, 7)},
    "norm": normal(7),
}


def model(p, ids):
    x = p["embed"][ids]
    hidden = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"])
    return x + hidden @ p["down"]["kernel"] * p["norm"]


def loss(p, ids):
    return (model(p, ids) ** 2).mean()


model, loss = jax.jit(model), jax.jit(loss)
lifted = jax.jit(jlora.lift(model, strict=True))
lifted_loss = jlora.lift(loss, strict=True)


@jax.jit
def gradient_by_hand(lora):
    return jax.grad(lambda lora: loss(jlora.merge(PARAMS, lora), IDS))(lora)


def every_kind(seed=0, dropout=0.0, dtype="float32"):
    """An adapter that holds one node of each kind, and has trained."""
    options = {"rank": 3, "dropout": dropout, "dtype": dtype}
    some = jlora.LoraConfig(
        targets="up/kernel", bias="lora", train="norm", tokens={"embed": (1, 5)}, **options
    )
    other = jlora.LoraConfig(targets="down/kernel", method="dora", **options)
    key = jax.random.key(seed)
    nodes = [jlora.split(PARAMS, config, key)[1] for config in (some, other)]
    return trained({**nodes[0], **nodes[1]}, seed + 1)


LORA = every_kind()
OTHER = every_kind(seed=7)
NAMES = [
    "down/kernel/a", "down/kernel/b", "down/kernel/scaling", "down/kernel/magnitude",
    "embed/delta",
    "norm/value",
    "up/bias/delta", "up/bias/scaling",
    "up/kernel/a", "up/kernel/b", "up/kernel/scaling",
]  # fmt: skip


def assert_same(got, want):
    """Bit for bit, static data too."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)


def blank(tree):
    return jax.tree.map(jnp.zeros_like, tree)


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


# Flax's serialisation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_flax_writes_and_reads_every_kind_of_node(dtype, dropout):
    lora = every_kind(dtype=dtype, dropout=dropout)
    assert lora["up/kernel"].a.dtype == dtype
    written = serialization.to_bytes(lora)
    read = serialization.from_bytes(blank(lora), written)
    assert_same(read, lora)
    assert_same(lifted(PARAMS, read, IDS), lifted(PARAMS, lora, IDS))


def test_the_state_dict_holds_the_arrays_by_their_names():
    state = serialization.to_state_dict(LORA)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    assert sorted(names) == sorted(NAMES)
    assert np.array_equal(state["down/kernel"]["magnitude"], LORA["down/kernel"].magnitude)
    assert_same(serialization.from_state_dict(blank(LORA), state), LORA)


def test_a_state_dict_that_lacks_a_field_is_refused_by_its_path():
    state = serialization.to_state_dict(LORA)
    del state["up/kernel"]["b"]
    with pytest.raises(ValueError, match=r"(?s)\bb\b.*LoraWeight.*up/kernel"):
        serialization.from_state_dict(LORA, state)


def test_a_train_state_that_holds_an_adapter_goes_through_bytes_and_on():
    tx = jlora.optimizer(optax.adam(1e-2))
    state = TrainState.create(apply_fn=lifted_loss, params={"lora": LORA}, tx=tx)

    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: state.apply_fn(PARAMS, params["lora"], IDS))(state.params)
        return state.apply_gradients(grads=grads)

    state = step(state)
    read = serialization.from_bytes(blank(state), serialization.to_bytes(state))
    assert_same(step(read), step(state))
    assert not np.array_equal(read.params["lora"]["norm"].value, LORA["norm"].value)


def test_orbax_alone_writes_and_reads_it(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "adapter", LORA)
        checkpointer.wait_until_finished()
        read = checkpointer.restore(tmp_path / "adapter", jax.eval_shape(lambda: LORA))
    assert_same(read, LORA)


# Exported programs


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.tanh(nn.Dense(11)(x)))


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.tanh(nn.Conv(9, (3, 2), strides=(2, 1))(x)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(3, qkv_features=6)(x)


def linen(module, *shape):
    params = jax.jit(module.init)(KEY, jnp.ones((1, *shape)))
    biased = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return module.apply, biased, shape, "float32"


def scanned(p, x):
    def layer(x, layer):
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    return lax.scan(layer, x, p)[0]


def tied(p, ids):
    return jnp.tanh(p["table"][ids]) @ p["table"].T


MODELS = {  # the function, its parameters, the input's shape without the batch, its dtype
    "products": (
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        {"w": normal(7, 11), "v": normal(11, 5)},
        (7,),
        "float32",
    ),
    "products over a length": (
        lambda p, x: jnp.einsum("...i,oi->...o", x, p["w"]) + p["b"],
        {"w": normal(11, 7), "b": normal(11)},
        (6, 7),
        "float32",
    ),
    "biases": linen(Dense(), 7),
    "a scan": (scanned, {"w": normal(3, 7, 7) / 3, "b": normal(3, 7)}, (7,), "float32"),
    "a lookup": (tied, {"table": normal(13, 7)}, (6,), "int32"),
    "a convolution": linen(Convolution(), 6, 5, 3),
    "attention": linen(Attention(), 6, 7),
}


def through_a_file(fn, *args, derivatives=0):
    """The function exported for these shapes, written and read again."""
    written = export.export(jax.jit(fn))(*args).serialize(vjp_order=derivatives)
    return export.deserialize(written).call


def check_exported(call, fn, frozen, lora, *inputs):
    """Law 1 of an exported program, at these inputs."""
    whole = jax.jit(lambda frozen, lora, x: fn(jlora.merge(frozen, lora), x))
    for x in inputs:
        assert_close(call(frozen, lora, x), whole(frozen, lora, x), 1e-4)


def an_input(shape, dtype):
    if dtype == "int32":
        return jax.random.randint(KEY, shape, 0, 13)
    return jax.random.normal(KEY, shape)


def split_for(name, method, **options):
    fn, params, shape, dtype = MODELS[name]
    axes = jlora.trace_axes(fn, params, an_input((2, *shape), dtype))
    targets = "kernel|table|w|v"
    return fn, *adapted(params, axes, targets=targets, method=method, **options), shape, dtype


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_program_is_the_lifted_one_at_every_batch(name, method):
    fn, frozen, lora, shape, dtype = split_for(name, method, rank=3)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 5)))


def test_a_convolution_that_may_cost_less_merged_exports_too():
    ranks = {"Conv": 9, "Dense": 2}
    fn, frozen, lora, shape, dtype = split_for("a convolution", "lora", rank_pattern=ranks)
    [batch] = export.symbolic_shape("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jlora.MaterialisedWarning)
        inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
        call = through_a_file(jlora.lift(fn), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 9)))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_without_a_size_is_enough_to_trace_axes_and_to_explain(name):
    fn, frozen, lora, shape, dtype = split_for(name, "lora", rank=3)
    [batch] = export.symbolic_shape("batch")
    symbolic = jax.ShapeDtypeStruct((batch, *shape), dtype)
    x = an_input((2, *shape), dtype)
    assert jlora.trace_axes(fn, frozen, symbolic) == jlora.trace_axes(fn, frozen, x)
    got, want = (jlora.explain(fn, frozen, lora, each) for each in (symbolic, x))
    assert [(use.path, use.operation) for use in got.uses] == [
        (use.path, use.operation) for use in want.uses
    ]
    assert got.materialised == want.materialised == 0
    assert all(path in str(got) for path in lora)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_exported_program_of_fixed_sizes_is_the_lifted_one(method):
    fn, frozen, lora, shape, dtype = split_for("biases", method, rank=3)
    x = an_input((4, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, x)
    check_exported(call, fn, frozen, lora, x)


@pytest.mark.parametrize("name", ["products", "biases", "products over a length"])
def test_a_rank_at_which_the_batch_decides_what_is_cheapest_exports_too(name):
    """x A B costs less than x (A B) for few rows alone."""
    fn, frozen, lora, shape, dtype = split_for(name, "lora", rank=5)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(call, fn, frozen, lora, *(an_input((n, *shape), dtype) for n in (1, 64)))


def test_a_batch_and_a_length_are_symbols_of_their_own():
    fn, frozen, lora, (_, width), dtype = split_for("attention", "lora", rank=2)
    batch, length = export.symbolic_shape("batch, length")
    inputs = jax.ShapeDtypeStruct((batch, length, width), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs)
    check_exported(
        call, fn, frozen, lora, *(an_input((*sizes, width), dtype) for sizes in ((1, 1), (2, 9)))
    )


def test_a_program_with_every_kind_of_node_exports():
    [batch] = export.symbolic_shape("batch")
    call = through_a_file(lifted, PARAMS, LORA, jax.ShapeDtypeStruct((batch, 4), "int32"))
    for lora in (LORA, OTHER):
        check_exported(call, model, PARAMS, lora, IDS)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_exported_program_has_the_gradients_of_the_lifted_one(method):
    fn, frozen, lora, shape, dtype = split_for("biases", method, rank=3)
    [batch] = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *shape), dtype)
    call = through_a_file(jlora.lift(fn, strict=True), frozen, lora, inputs, derivatives=1)
    x = an_input((4, *shape), dtype)
    got = jax.jit(jax.grad(lambda lora: (call(frozen, lora, x) ** 2).mean()))(lora)
    want = jax.jit(jax.grad(lambda lora: (fn(jlora.merge(frozen, lora), x) ** 2).mean()))(lora)
    assert_close(got, want, 1e-4)


# Static data


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


# Copies


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_numpy_adapters_and_configurations_are_pickled(protocol):
    lora = jax.tree.map(np.asarray, LORA)
    read = pickle.loads(pickle.dumps(lora, protocol))
    assert_same(read, lora)
    assert list(read) == list(lora)
    assert_close(lifted(PARAMS, read, IDS), lifted(PARAMS, LORA, IDS))
    config = jlora.LoraConfig(
        targets=["up", "down"], rank_pattern={"up": 2}, tokens={"embed": [1, 5]}, dropout=0.1
    )
    same = pickle.loads(pickle.dumps(config, protocol))
    assert (same, hash(same)) == (config, hash(config))


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


def test_a_deep_copy_shares_nothing():
    lora = jax.tree.map(np.array, LORA)
    copied = copy.deepcopy(lora)
    assert_same(copied, lora)
    copied["up/kernel"].a[...] = 0
    copied["norm"].value[...] = 0
    assert_same(lora, LORA)
    assert_same(copy.deepcopy(LORA), LORA)


def test_placed_and_awaited_it_is_the_same():
    device = jax.devices()[-1]
    sharding = jax.sharding.SingleDeviceSharding(device)
    places = jax.tree.map(lambda _: sharding, LORA)
    for put in (jax.device_put(LORA, device), jax.device_put(LORA, places)):
        assert_same(jax.block_until_ready(put), LORA)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(put))
    assert_same(jax.device_get(LORA), LORA)


# Transformations of trees


def test_shapes_alone_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    for init in ("kaiming", "pissa", "olora"):
        for method in ("lora", "dora"):
            config = jlora.LoraConfig(
                targets="up/kernel", rank=2, init=init, method=method, train="norm", bias="lora",
                tokens={"embed": (1, 5)}, dropout=0.5,
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


# Dropout rates are data


SIZE = 40
ONES = jnp.ones((100, SIZE))


def revealing(rate):
    """(frozen, lora) whose adapter gives back what it gets: W = 0, A = B = 1."""
    frozen = {"w": jnp.zeros((SIZE, SIZE))}
    config = jlora.LoraConfig(targets="w", rank=SIZE, alpha=SIZE, dropout=rate)
    _, lora = jlora.split(frozen, config, KEY)
    eye = jnp.eye(SIZE)
    return frozen, {"w": dataclasses.replace(lora["w"], a=eye, b=eye)}


def assert_drops(out, rate):
    kept = np.asarray(out) != 0
    np.testing.assert_allclose(np.asarray(out)[kept], 1 / (1 - rate), rtol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 0.05


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_rate_is_an_array_and_none_where_nothing_drops(method):
    def node(dropout):
        config = jlora.LoraConfig(targets="up", rank=2, method=method, dropout=dropout)
        return jlora.split(PARAMS, config, KEY)[1]["up/kernel"]

    assert node(0.0).dropout is None
    assert isinstance(node(0.25).dropout, jax.Array)
    assert (float(node(0.25).dropout), node(0.25).dropout.shape) == (0.25, ())
    assert len(jax.tree.leaves(node(0.25))) == 1 + len(jax.tree.leaves(node(0.0)))


def test_adapters_of_different_rates_stack_and_drop_at_their_own():
    rates = (0.25, 0.75)
    (frozen, one), (_, other) = map(revealing, rates)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    apply = jlora.lift(lambda p, x: x @ p["w"], strict=True)

    @jax.vmap
    def run(lora, key):
        return apply(frozen, lora, ONES, dropout_key=key)

    keys = jax.random.split(KEY, 2)
    outputs = run(both, keys)
    for out, alone, key, rate in zip(outputs, (one, other), keys, rates, strict=True):
        assert_drops(out, rate)
        assert_close(out, apply(frozen, alone, ONES, dropout_key=key))
    assert_close(jax.vmap(lambda lora: apply(frozen, lora, ONES))(both), jnp.stack([ONES] * 2))


def test_one_compiled_program_serves_two_rates():
    traces = []

    def counted(p, x):
        traces.append(None)
        return x @ p["w"]

    apply = jax.jit(jlora.lift(counted, strict=True))
    for rate in (0.25, 0.5):
        assert_drops(apply(*revealing(rate), ONES, dropout_key=KEY), rate)
    assert len(traces) == 1


def test_a_rate_does_not_train():
    lora = every_kind(dropout=0.5)
    tx = jlora.optimizer(optax.adamw(0.1, weight_decay=0.1))
    state = tx.init(lora)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    of_those_that_train = jax.tree.map(
        lambda leaf, trains: leaf.size if trains else 0, lora, jlora.mask(lora)
    )
    assert held == 2 * sum(jax.tree.leaves(of_those_that_train))
    assert jlora.mask(lora)["up/kernel"].dropout is False
    assert jlora.labels(lora)["up/kernel"].dropout == "freeze"
    assert jlora.decay_mask(lora)["up/kernel"].dropout is False

    @jax.jit
    def step(lora, state):
        def of(lora):
            return lifted_loss(PARAMS, lora, IDS, dropout_key=KEY)

        grads = jax.grad(of)(lora)
        updates, _ = tx.update(grads, state, lora)
        return grads, optax.apply_updates(lora, updates)

    grads, moved = step(lora, state)
    assert grads["up/kernel"].dropout == 0
    assert np.abs(grads["up/kernel"].b).max() > 0
    assert moved["up/kernel"].dropout == lora["up/kernel"].dropout
    assert not np.array_equal(moved["up/kernel"].a, lora["up/kernel"].a)


# Modules that hold an adapter


class Adapted(nnx.Module):
    """The base in a variable of its own kind, so that `nnx.Param` is what trains."""

    def __init__(self, frozen, lora):
        self.frozen = nnx.data(jax.tree.map(nnx.Variable, frozen))
        self.lora = nnx.Param(lora)

    def __call__(self, ids):
        frozen = jax.tree.map(
            lambda v: v[...], self.frozen, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
        return lifted(frozen, self.lora.get_value(), ids)


def test_an_nnx_param_holds_an_adapter():
    module = Adapted(PARAMS, LORA)
    want = model(jlora.merge(PARAMS, LORA), IDS)
    assert_close(nnx.jit(lambda module, ids: module(ids))(module, IDS), want)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert jax.tree.leaves(params)
    assert_same(nnx.merge(graph, params, rest).lora.get_value(), LORA)
    assert_close(nnx.merge(graph, params, rest)(IDS), want)

    grads = nnx.grad(lambda module: (module(IDS) ** 2).mean())(module)
    by_hand = gradient_by_hand(LORA)
    got = jax.tree.leaves(grads)
    assert len(got) == len(NAMES)
    for one, other in zip(got, jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_an_nnx_optimizer_trains_an_adapter_in_a_param():
    module = Adapted(PARAMS, LORA)
    tx = optax.adamw(1e-2, weight_decay=0.1)
    optimizer = nnx.Optimizer(module, jlora.optimizer(tx), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(lambda module: (module(IDS) ** 2).mean())(module))

    step(module, optimizer)
    moved = dict(module.lora.get_value())  # nnx makes a State of it
    inner = jlora.optimizer(tx)
    grads = gradient_by_hand(LORA)
    updates, _ = inner.update(grads, inner.init(LORA), LORA)
    assert_close(moved, optax.apply_updates(LORA, updates), 1e-4)
    assert moved["up/kernel"].scaling == LORA["up/kernel"].scaling
    assert not np.array_equal(moved["up/kernel"].a, LORA["up/kernel"].a)
    assert_close(module(IDS), model(jlora.merge(PARAMS, moved), IDS))
    for one, other in zip(
        jax.tree.leaves(nnx.state(module, nnx.Not(nnx.Param))), jax.tree.leaves(PARAMS), strict=True
    ):
        assert np.array_equal(one, other)


class Holder(eqx.Module):
    frozen: dict
    lora: dict
    name: str = eqx.field(static=True, default="held")

    def __call__(self, ids):
        return lifted(self.frozen, self.lora, ids)


def test_an_equinox_module_holds_an_adapter():
    holder = Holder(PARAMS, LORA)
    want = model(jlora.merge(PARAMS, LORA), IDS)
    assert_close(eqx.filter_jit(holder)(IDS), want)

    grads = eqx.filter_jit(eqx.filter_grad(lambda holder: (holder(IDS) ** 2).mean()))(holder)
    by_hand = gradient_by_hand(LORA)
    assert_close(grads.lora, by_hand, 1e-4)


def test_the_mask_parts_an_equinox_module_into_what_trains_and_the_rest():
    holder = Holder(PARAMS, LORA)
    trains, rest = eqx.partition(holder, jlora.mask(holder))
    assert len(jax.tree.leaves(trains)) == sum(jax.tree.leaves(jlora.mask(LORA))) == 8
    grads = jax.grad(lambda trains: (eqx.combine(trains, rest)(IDS) ** 2).mean())(trains)
    by_hand = gradient_by_hand(LORA)
    assert_close(grads.lora["down/kernel"].magnitude, by_hand["down/kernel"].magnitude, 1e-4)
    assert grads.lora["down/kernel"].scaling is None


def test_equinox_writes_and_reads_its_leaves():
    holder, file = Holder(PARAMS, LORA), io.BytesIO()
    eqx.tree_serialise_leaves(file, holder)
    file.seek(0)
    assert_same(eqx.tree_deserialise_leaves(file, blank(holder)), holder)
