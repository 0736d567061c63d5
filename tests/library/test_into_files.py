"""An adapter goes into files and copies as any pytree does: Flax's, Orbax's, pickles."""

import copy
import pickle

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from every_kind import (
    IDS,
    LORA,
    NAMES,
    PARAMS,
    assert_same,
    blank,
    every_kind,
    lifted,
    lifted_loss,
)
from flax import serialization
from flax.training.train_state import TrainState
from laws import assert_close

import jlora


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
