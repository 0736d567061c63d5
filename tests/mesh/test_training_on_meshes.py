"""Updates on a mesh: equal copies, states that lie as their factors, clipping, collectives."""

import collections
import dataclasses
import functools
import hashlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from laws import assert_close
from on_meshes import AUTO, LAYOUTS, ONE, Case, normal, on_each

import jlora
from jlora import trainer


def model(on):
    """A matrix, two scanned layers, and a head: every leaf of another size."""
    rows, columns = ("data", None), ("data", "model")

    def step(x, layer):
        hidden = jnp.einsum("bi,ih->bh", x, layer["up"], out_sharding=on.told(*columns))
        return x + jnp.einsum(
            "bh,ho->bo", jnp.tanh(hidden), layer["down"], out_sharding=on.told(*rows)
        ), None

    def fn(p, x):
        x = jnp.einsum("bi,ih->bh", x, p["first"], out_sharding=on.told(*rows))
        x, _ = jax.lax.scan(jax.checkpoint(step), x, p["layers"])
        logits = jnp.einsum("bi,iv->bv", x, p["head"], out_sharding=on.told(*columns))
        return jnp.square(logits - 1).mean()

    return fn


CASE = Case(
    model,
    params={
        "first": normal(24, 40, seed=1),
        "layers": {"up": normal(2, 40, 56, seed=2), "down": normal(2, 56, 40, seed=3)},
        "head": normal(40, 72, seed=4),
    },
    layouts={
        "first": ("model", "data"),
        "layers": {"up": (None, "data", "model"), "down": (None, "model", "data")},
        "head": ("data", "model"),
    },
    args=(normal(16, 24, seed=5, scale=1.0),),
    arg_layouts=(("data", None),),
    axes={
        "first": jlora.Axes(),
        "layers/up": jlora.Axes((1,), (2,), (0,)),
        "layers/down": jlora.Axes((1,), (2,), (0,)),
        "head": jlora.Axes(),
    },
)
TX = jlora.optimizer(
    optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(1e-2, mask=jlora.decay_mask))
)


def updates(on, frozen, lora, args, count=3):
    """The adapter and the optimizer's state after so many updates, and the state at first."""
    loss = jlora.lift(model(on), strict=True)

    def step(frozen, lora, state, *args):
        grads = jax.grad(loss, argnums=1)(frozen, lora, *args)
        changes, state = TX.update(grads, state, lora)
        return optax.apply_updates(lora, changes), state

    if on.mesh is None or AUTO not in on.mesh.axis_types:
        first, step = jax.jit(TX.init)(lora), jax.jit(step)
    else:  # along automatic axes results lie where the compiler likes, if it is not told
        first = TX.init(lora)
        places = jax.tree.map(functools.partial(place, on), (lora, first))
        first, step = jax.device_put(first, places[1]), jax.jit(step, out_shardings=places)
    state = first
    for _ in range(count):
        lora, state = step(frozen, lora, state, *args)
    return lora, state, first


def place(on, leaf):
    """Where an array lies on the mesh; a count that was made elsewhere goes everywhere."""
    on_mesh = isinstance(leaf.sharding, NamedSharding)
    return leaf.sharding if on_mesh else NamedSharding(on.mesh, P())


@functools.cache
def on_one_device():
    frozen, lora = CASE.adapter()
    return updates(ONE, frozen, lora, CASE.args)[:2]


@functools.cache
def after_updates(on, layout):
    """(lora, state, first state) on the mesh; the tests below look at one run."""
    frozen, lora = CASE.adapter()
    frozen, args = CASE.placed(on, frozen)
    lora = LAYOUTS[layout](on, frozen, lora)
    with jax.set_mesh(on.mesh):
        return lora, *updates(on, frozen, lora, args)


LAID_OUT = pytest.mark.parametrize("layout", ["replicated", "as its weights"])


@LAID_OUT
def test_updates_are_those_of_one_device(on, layout):
    """Clipped far below the gradients' norm, which counts what is replicated once."""
    _, lora, state, _ = after_updates(on, layout)
    assert_close((lora, state), on_one_device(), 2e-3)


@LAID_OUT
def test_copies_stay_equal_bit_for_bit(on, layout):
    _, lora, state, _ = after_updates(on, layout)
    replicated = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((lora, state)):
        copies = collections.defaultdict(set)
        for shard in leaf.addressable_shards:
            copies[str(shard.index)].add(hashlib.sha256(np.asarray(shard.data)).hexdigest())
        assert {len(each) for each in copies.values()} == {1}, jax.tree_util.keystr(path)
        replicated += len(copies) < len(leaf.addressable_shards)
    assert replicated


@LAID_OUT
def test_adapters_and_states_keep_their_layouts(on, layout):
    before, lora, state, first = after_updates(on, layout)
    for path, node in before.items():
        for name in node.trainable:
            factor = getattr(node, name)
            moments = [
                getattr(tree[path], name)
                for each in (first, state)
                for tree in (moments_of(each).mu, moments_of(each).nu)
            ]
            for leaf in (getattr(lora[path], name), *moments):
                assert leaf.sharding.is_equivalent_to(factor.sharding, leaf.ndim), (
                    f"{path}.{name}: {leaf.sharding}, expected {factor.sharding}"
                )


def norm_of(tree):
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def moments_of(state):
    is_adam = lambda each: isinstance(each, optax.ScaleByAdamState)  # noqa: E731
    leaves = jax.tree.leaves(state, is_leaf=is_adam)
    [adam] = (leaf for leaf in leaves if is_adam(leaf))
    return adam


def test_clipping_scales_as_on_one_device(on):
    frozen, lora = CASE.adapter()
    tx = jlora.optimizer(optax.clip_by_global_norm(0.05))

    def clipped(on):
        loss = jlora.lift(model(on), strict=True)

        def run(frozen, lora, *args):
            grads = jax.grad(loss, argnums=1)(frozen, lora, *args)
            return tx.update(grads, tx.init(lora), lora)[0], norm_of(grads)

        return jax.jit(run)

    want, norm = clipped(ONE)(frozen, lora, *CASE.args)
    assert norm > 0.1
    placed, args = CASE.placed(on, frozen)
    followed = LAYOUTS["as its weights"](on, placed, lora)
    with jax.set_mesh(on.mesh):
        got, again = clipped(on)(placed, followed, *args)
    np.testing.assert_allclose(again, norm, rtol=1e-4)
    assert_close(got, want, 1e-4)


@on_each("2x4 auto")
def test_a_state_whose_number_is_set_anew_does_not_compile_the_step_twice(on):
    """As that of a run which goes on: the number lies on one device, the rest on the mesh."""
    traced = []

    def loss(params, x):
        traced.append(x.shape)
        return jnp.square(x @ params["w"]).sum(), x.size

    config = jlora.LoraConfig(targets="w", rank=4)
    frozen, lora = jlora.split({"w": normal(24, 40)}, config, jax.random.key(0))
    frozen, x = on.put((frozen, normal(16, 24, seed=5)), ({"w": ("data", "model")}, ("data", None)))
    lora = jax.device_put(lora, jlora.shardings(frozen, lora))
    step = trainer.make_step(jlora.lift(loss), TX)
    state = trainer.init(lora, TX, jax.random.key(1))
    state, _ = step(frozen, dataclasses.replace(state, step=jnp.int32(5)), x)
    once = len(traced)
    state, _ = step(frozen, state, x)
    assert int(state.step) == 7
    assert len(traced) == once


COLLECTIVES = re.compile(
    r"= (?P<result>.*?) (?P<name>all-gather|all-reduce|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast)(-start)?\((?P<operands>.*?)\)"
)
ARRAY = re.compile(r"\w+\[([\d,]*)\]")


def collectives(compiled):
    """How often each collective moves arrays of which sizes, results and operands."""
    found = collections.Counter()
    for line in compiled.as_text().splitlines():
        if match := COLLECTIVES.search(line):
            for shape in ARRAY.findall(match["result"] + match["operands"]):
                found[match["name"], math.prod(map(int, shape.split(","))) if shape else 1] += 1
    return found


def collectives_added(on, method, layout):
    """Those of a step through the lifted model that the model itself has not, or has less often."""
    frozen, lora = CASE.adapter(method)
    frozen, args = CASE.placed(on, frozen)
    lora = LAYOUTS[layout](on, frozen, lora)
    base = jax.jit(jax.value_and_grad(model(on), argnums=1))
    lifted = jax.jit(jax.value_and_grad(jlora.lift(model(on), strict=True), argnums=(1, 2)))
    with jax.set_mesh(on.mesh):
        have = collectives(base.lower(frozen, *args).compile())
        assert have
        return collectives(lifted.lower(frozen, lora, *args).compile()) - have


FOLLOWING = [("lora", "as its weights"), ("dora", "as its weights")]


@pytest.mark.usefixtures("compiled_as_ever")
@pytest.mark.parametrize(
    ("on", "method", "layout"),
    [("2x4", *each) for each in [*FOLLOWING, ("lora", "replicated")]]
    + [("2x4 auto", *each) for each in FOLLOWING],
    indirect=["on"],
)
def test_nothing_larger_than_a_factor_is_moved_for_an_adapter(on, method, layout):
    """No frozen weight, and no activation either where layouts leave the compiler no choice."""
    _, lora = CASE.adapter(method)
    added = collectives_added(on, method, layout)
    assert not moves_of_weights(added)
    largest = max(leaf.size for leaf in jax.tree.leaves(lora))
    assert not {key for key in added if key[1] > largest}


@pytest.mark.usefixtures("compiled_as_ever")
@on_each("2x4 auto", "2 auto x 4")
def test_no_frozen_weight_is_moved_for_an_adapter_that_lies_whole(on):
    added = collectives_added(on, "lora", "replicated")
    assert not moves_of_weights(added)


def moves_of_weights(moves):
    """Those of a weight's size: a leaf, a layer of one, or any part of these."""
    layers = jax.tree.leaves(CASE.params["layers"])
    whole = {leaf.size for leaf in jax.tree.leaves(CASE.params)} | {leaf[0].size for leaf in layers}
    sizes = {size // parts for size in whole for parts in (1, 2, 4, 8)}
    return {key for key in moves if key[1] in sizes}
