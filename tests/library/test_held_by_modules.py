"""Modules of NNX and Equinox that hold an adapter."""

import io

import equinox as eqx
import jax
import numpy as np
import optax
from every_kind import IDS, LORA, NAMES, PARAMS, assert_same, blank, gradient_by_hand, lifted, model
from flax import nnx
from laws import assert_close

import jlora


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
