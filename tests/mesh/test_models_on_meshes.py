"""A model that is trained on a mesh learns what it learns on one device, step by step."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import models_on_meshes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from laws import assert_close
from models_on_meshes import Measured, Run

import jlora
from benchmarks.ahead._collectives import moved
from jlora import models, trainer

MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "data=2,model=4": {"data": 2, "model": 4},
    "data=2,fsdp=2,model=2": {"data": 2, "fsdp": 2, "model": 2},
}


def mesh_of(name):
    return models.make_mesh(MESHES[name])


def explicit(mesh):
    """The mesh as `jax.make_mesh` makes it where nothing is said of its axes."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * mesh.devices.ndim)


@functools.cache
def on_one_device(run):
    measured, state = run.trained(None)
    return measured, jax.tree.map(np.asarray, state.lora)


def assert_like_one_device(run, measured, state):
    wanted, adapter = on_one_device(run)
    np.testing.assert_allclose(measured.losses, wanted.losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(measured.norms, wanted.norms, rtol=1e-4)
    assert min(wanted.norms) > 2 * models_on_meshes.CLIP
    assert min(np.abs(node.b).max() for node in adapter.values()) > 0.01  # from 0
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(state.lora), jax.tree.leaves(adapter), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0, err_msg=name)


# Each pair of mesh, family, method and packing, of axes that are automatic and explicit, is there.
RUNS = [
    ("data=8", Run("llama", "dora", packed=True), "explicit"),
    ("data=8", Run("qwen3_moe"), "auto"),
    ("data=8", Run("gemma2", "dora", packed=True), "auto"),
    ("fsdp=8", Run("llama", packed=True), "auto"),
    ("fsdp=8", Run("gemma2", "dora"), "explicit"),
    ("fsdp=8", Run("qwen3_moe", "dora", packed=True), "auto"),
    ("data=2,model=4", Run("llama", "dora"), "auto"),
    ("data=2,model=4", Run("gemma2", packed=True), "explicit"),
    ("data=2,model=4", Run("qwen3_moe", "dora"), "auto"),
    ("data=2,fsdp=2,model=2", Run("llama"), "explicit"),
    ("data=2,fsdp=2,model=2", Run("gemma2", "dora", packed=True), "auto"),
    ("data=2,fsdp=2,model=2", Run("qwen3_moe"), "explicit"),
    ("data=2,fsdp=2,model=2", Run("llama", packed=True, accumulate=2), "auto"),
]


@pytest.mark.parametrize(("mesh", "run", "axes"), RUNS)
def test_twenty_steps_are_those_of_one_device(mesh, run, axes):
    on_one_device(run)  # before there is a mesh on which its arrays would lie
    mesh, context = mesh_of(mesh), contextlib.nullcontext()
    if axes == "explicit":
        mesh = explicit(mesh)
        context = jax.set_mesh(mesh)
    with context:
        measured, state = run.trained(mesh)
    assert_like_one_device(run, measured, state)


@pytest.mark.parametrize(
    ("family", "sizes", "rows"),
    [
        ("llama", {"data": 1, "fsdp": 1, "model": 4}, 1),
        ("qwen3_moe", {"data": 1, "model": 1}, 1),
        ("gemma2", {"fsdp": 1, "model": 2}, 8),
        ("llama", {"data": 8, "fsdp": 1, "model": 1}, 1),
    ],
)
def test_explicit_axes_of_size_1_change_no_gradient_and_no_token(family, sizes, rows):
    """Batches of one row too, which axes of more than one device do not divide."""
    run = Run(family, packed=True)
    batch = {name: jnp.asarray(array[:rows]) for name, array in run.batches(1).items()}
    starts = jnp.zeros(rows, int)

    def graded(model, frozen, lora, batch):
        def mean(lora):
            total, count = jlora.lift(functools.partial(models.answer_loss, model))(
                frozen, lora, batch
            )
            return total / count

        return jax.value_and_grad(mean)(lora)

    def told(mesh):
        model = models_on_meshes.on(mesh, family)
        model = dataclasses.replace(model, tokenizer=models.Tokenizer(None, None, (0,), {}, "none"))
        _, frozen, state, _ = run.begun(mesh)
        lora = jax.tree.map(lambda leaf: leaf + 0.05 if leaf.ndim else leaf, state.lora)
        its = batch
        if layout := model.layout:
            where = layout.rows if rows % layout.parts == 0 else layout.whole
            its = jax.device_put(batch, where)
        value, grads = jax.jit(functools.partial(graded, model))(frozen, lora, its)
        write = jax.jit(functools.partial(model.generate, max_new_tokens=3))
        tokens = write(jlora.merge(frozen, lora), its["tokens"], starts)
        return value, jax.tree.map(np.asarray, grads), np.asarray(tokens)

    value, grads, tokens = told(None)
    mesh = explicit(models.make_mesh(sizes))
    with jax.set_mesh(mesh):
        got, found, same = told(mesh)
    np.testing.assert_allclose(got, value, atol=1e-5, rtol=0)
    assert_close(found, grads, 1e-4)
    np.testing.assert_array_equal(same, tokens)


def test_dropout_is_that_of_one_device():
    """Its masks follow from the key and from places in the whole array."""
    run = Run("llama", dropout=0.5)
    assert_like_one_device(run, *run.trained(mesh_of("data=2,fsdp=2,model=2")))


def test_another_order_of_the_devices_changes_nothing():
    run, mesh = Run("llama"), mesh_of("data=2,model=4")
    order = np.random.default_rng(0).permutation(mesh.devices.reshape(-1))
    turned = Mesh(order.reshape(mesh.devices.shape), mesh.axis_names)
    assert_like_one_device(run, *run.trained(turned))


@pytest.fixture(scope="module", name="after")
def _after():
    """The state before and after three steps, on a mesh of all kinds of axes."""
    step, frozen, state, batches = Run("llama", "dora").begun(mesh_of("data=2,fsdp=2,model=2"))
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    for update in trainer.iterate(step, frozen, state, batches, steps=3):
        state = update.state
    return places, state


def test_copies_stay_equal_bit_for_bit(after):
    replicated = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((after[1].lora, after[1].opt_state)):
        copies: dict[str, set[str]] = {}
        for shard in leaf.addressable_shards:
            digest = hashlib.sha256(np.asarray(shard.data)).hexdigest()
            copies.setdefault(str(shard.index), set()).add(digest)
        assert {len(each) for each in copies.values()} == {1}, jax.tree_util.keystr(path)
        replicated += len(copies) < len(leaf.addressable_shards)
    assert replicated


def test_the_state_stays_where_it_was(after):
    places, state = after
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(places), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), jax.tree_util.keystr(path)


def test_no_factor_and_no_moment_is_whole_on_every_device(after):
    """But A and B of what has as many outputs as there are devices along the axes, or fewer."""
    for path, node in after[1].lora.items():
        for name in ("a", "b"):
            assert not getattr(node, name).sharding.is_fully_replicated, f"{path}.{name}"
    sizes = {leaf.size for leaf in jax.tree.leaves(after[1].lora)}
    for leaf in jax.tree.leaves(after[1].opt_state):
        if leaf.size in sizes and leaf.size > 64:
            assert not leaf.sharding.is_fully_replicated


def test_shapes_say_where_a_state_will_lie():
    """What is compiled before a run is what runs."""
    mesh = mesh_of("data=2,fsdp=2,model=2")
    _, _, state, _ = Run("llama").begun(mesh)
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
    import optax

    import jlora

    clipped = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(3e-3))
    told = trainer.init_shapes(jax.tree.map(shape, state.lora), jlora.optimizer(clipped))
    assert jax.tree.structure(told) == jax.tree.structure(state)
    for like, leaf in zip(jax.tree.leaves(told), jax.tree.leaves(state), strict=True):
        assert (like.shape, like.dtype) == (leaf.shape, leaf.dtype)
        assert like.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


# ---- What is moved between devices ---------------------------------------------------------------


def weights(family="llama"):
    flat = flax.traverse_util.flatten_dict(models_on_meshes.on_one_device(family).params, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


@pytest.mark.usefixtures("compiled_as_ever")
@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,model=4", "data=2,fsdp=2,model=2"])
def test_weights_are_gathered_a_layer_at_a_time_and_never_added_up(mesh):
    found = moved(Run("llama").compiled(mesh_of(mesh)).as_text(), 8)
    assert found
    layers = models_on_meshes.SIZES["num_hidden_layers"]
    stacks = {shape for path, shape in weights().items() if path.startswith("layers/")}
    assert {shape[0] for shape in stacks} == {layers}
    for each in found:
        assert not stacks & set(each.shapes), each
        if each.name in ("all-reduce", "reduce-scatter"):
            of_weights = {shape[1:] for shape in stacks if len(shape) == 3}
            assert not of_weights & set(each.shapes), each


@pytest.mark.usefixtures("compiled_as_ever")
def test_with_fsdp_each_layers_weights_are_gathered_forward_and_backward_and_no_more():
    found = moved(Run("llama").compiled(mesh_of("fsdp=8")).as_text(), 8)
    layers = models_on_meshes.SIZES["num_hidden_layers"]
    kernels = collections.Counter(
        shape[1:] for path, shape in weights().items() if re.fullmatch(r"layers/.*kernel", path)
    )
    gathered: collections.Counter[tuple[int, ...]] = collections.Counter()
    for each in found:
        if each.name == "all-gather":
            gathered.update({shape: each.times for shape in each.shapes if shape in kernels})
    head = weights()["head/kernel"]
    gathered[head] -= 1  # of the shape of a kernel, and gathered once
    assert gathered == {shape: 2 * layers * count for shape, count in kernels.items()}
    for each in found:  # no activation is moved whole, where weights should be
        rows = models_on_meshes.ROWS * models_on_meshes.LENGTH
        wide = rows * models_on_meshes.SIZES["hidden_size"]
        assert max(map(np.prod, each.shapes), default=0) < wide, each


@pytest.mark.usefixtures("compiled_as_ever")
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gradients_of_a_and_b_are_added_up_once_and_nothing_else_is_moved(family):
    """Experts too compute the rows that their device has."""
    step, frozen, state, batches = Run(family).begun(mesh_of("data=8"))
    found = moved(step.lower(frozen, state, batches(0)).compile().as_text(), 8)
    factors = [field.shape for node in state.lora.values() for field in (node.a, node.b)]
    numbers = sum(int(np.prod(shape)) for shape in factors)
    added = sum(each.result * each.times for each in found if each.name == "all-reduce") // 4
    # of a router as narrow as its rank x'g is added up, of which the gradients of A and B follow
    assert 0.99 * numbers <= added < 1.02 * numbers + 2000, (numbers, added)
    assert not [each for each in found if each.name != "all-reduce"]


# ---- Layouts -------------------------------------------------------------------------------------


def test_a_rule_of_ones_own_says_how_a_weight_lies():
    rule = ("^embed/embedding$", P(None, "data"))
    model = models_on_meshes.on(mesh_of("data=2,model=4"), "llama", rules=(rule,))
    assert model.params["embed"]["embedding"].sharding.spec == P(None, "data")
    kernel = model.params["layers"]["attn"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == P(None, None, ("model",))


def test_rules_that_cant_be_followed_are_all_named():
    mesh = mesh_of("data=2,model=4")
    with pytest.raises(ValueError, match=r"'x' names the axis 'fsdp': the mesh has data, model"):
        models.Layout(mesh, rules=(("x", P("fsdp")),))
    rules = (("no_such", P("model")), ("layers/attn/q_proj", P("model")))
    with pytest.raises(ValueError, match="data=2, model=4") as raised:
        models_on_meshes.on(mesh, "llama", rules=rules)
    assert "no weight is called 'no_such'" in str(raised.value)
    assert "layers/attn/q_proj/kernel of shape (2, 32, 64) can't be cut" in str(raised.value)


def test_axes_of_other_names_are_refused():
    mesh = jax.make_mesh((8,), ("tensor",))
    with pytest.raises(ValueError, match=r"axes tensor: expected some of data \(rows"):
        models.Layout(mesh)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"data": 3, "model": -1}, "3 does not divide the 8 devices"),
        ({"data": 16}, "it has 16 places, more than the 8 devices"),
        ({"data": 0}, "an axis of 0"),
        ({"data": -1, "model": -1}, "two axes of -1"),
        ({"tensor": 8}, "an axis 'tensor', of which there are data, fsdp, model"),
        ({}, "no axis"),
    ],
)
def test_meshes_that_the_devices_do_not_make(sizes, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        models.make_mesh(sizes)
    assert "data=8, fsdp=8, fsdp=4,model=2, fsdp=2,model=4" in str(raised.value)


def test_what_is_left_of_the_devices():
    assert dict(models.make_mesh({"data": 2, "model": -1}).shape) == {"data": 2, "model": 4}
    assert models.make_mesh({"data": 6}).size == 6


# ---- Batches -------------------------------------------------------------------------------------


class Counted:
    """Batches of eight rows that keep an account of which were made."""

    batch_size = 8

    def __init__(self):
        self.made = []

    def part(self, number, start, stop):
        self.made.append((start, stop))
        return {"x": 100 * number + np.arange(start, stop, dtype=np.int32)[:, None] * [1, 2]}


def test_a_row_is_made_once_for_all_devices_that_hold_it():
    counted = Counted()
    rows = models.Layout(mesh_of("data=2,model=4")).rows
    batch = trainer.sharded(counted, rows)(3)["x"]
    assert sorted(counted.made) == [(0, 4), (4, 8)]
    np.testing.assert_array_equal(batch, 300 + np.arange(8)[:, None] * [1, 2])
    assert {shard.data.shape for shard in batch.addressable_shards} == {(4, 2)}


@pytest.mark.parametrize("count", [1, 5, 8, 9])
def test_rows_of_zeros_fill_what_cant_be_cut(count):
    rows = models.Layout(mesh_of("data=8")).rows
    batch = trainer.sharded(lambda n: {"x": np.full((count, 3), n)}, rows, fill=True)(7)["x"]
    assert batch.shape == (-(-count // 8) * 8, 3)
    assert np.asarray(batch).sum() == 21 * count
    if count % 8:
        with pytest.raises(
            ValueError,
            match=f"{count} rows can't be cut over data=8: .* such as {-(-count // 8) * 8}",
        ):
            trainer.sharded(lambda n: {"x": np.full((count, 3), n)}, rows)(7)


def test_a_loss_over_filled_batches_is_the_loss():
    run = Run("llama")
    _, frozen, state, _ = run.begun(mesh_of("data=8"))
    model = models_on_meshes.on(mesh_of("data=8"), "llama")
    five = lambda n: {name: each[:5] for name, each in run.batches(n).items()}  # noqa: E731
    loss = jax.jit(jlora.lift(functools.partial(models.answer_loss, model)))
    got = trainer.mean_loss(
        loss, frozen, state.lora, [trainer.sharded(five, model.layout.rows, fill=True)(1)]
    )
    alone = models_on_meshes.on_one_device("llama")
    total, count = models.answer_loss(alone, alone.params, jax.tree.map(jnp.asarray, five(1)))
    assert abs(got - float(total / count)) < 1e-5


# ---- Going on elsewhere --------------------------------------------------------------------------


def test_a_run_goes_on_on_any_other_mesh(tmp_path):
    """2x4, then 8, then one device, then 2x2x2."""
    run = Run("llama")
    folder = trainer.Run(tmp_path / "run")
    folder.begin({})
    losses, norms, done = [], [], 0
    for name in ("data=2,model=4", "fsdp=8", None, "data=2,fsdp=2,model=2"):
        step, frozen, state, batches = run.begun(mesh_of(name) if name else None)
        if done:
            done, saved, _ = folder.restore({"lora": state.lora, "opt_state": state.opt_state})
            for leaf, like in zip(
                jax.tree.leaves(saved["lora"]), jax.tree.leaves(state.lora), strict=True
            ):
                assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
            state = trainer.TrainState(jnp.int32(done), key=state.key, **saved)
        for update in trainer.iterate(step, frozen, state, batches, steps=done + 5):
            losses.append(float(update.metrics["loss"]))
            norms.append(float(update.metrics["grad_norm"]))
            state, done = update.state, update.number
        folder.save(done, {"lora": state.lora, "opt_state": state.opt_state})
    assert_like_one_device(run, Measured(np.array(losses), np.array(norms)), state)
