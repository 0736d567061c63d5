"""Any optimizer of optax trains A and B as it would alone, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import adapted, assert_close, trained

import jlora

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(3), (13, 7))
Y = jax.random.normal(jax.random.key(4), (13, 5))
# What trains, by kind of node: written out, as the oracle of every test here.
FIELDS = {
    "LoraWeight": ("a", "b"),
    "DoraWeight": ("a", "b", "magnitude"),
    "WholeWeight": ("value",),
    "BiasDelta": ("delta",),
}


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {
    "layers": normal(3, 7, 7),
    "in": {"kernel": normal(7, 11), "bias": normal(11)},
    "out": {"kernel": normal(11, 5)},
}


def adapter():
    """Stacked and plain LoRA, DoRA and a leaf that trains whole, all trained for a while."""
    layers = jlora.Axes(stack=(0,), inputs=(1,), outputs=(2,))
    axes = {"layers": layers, "in/kernel": jlora.Axes(), "out/kernel": jlora.Axes()}
    lora = {}
    for options in (
        {"targets": "layers|out", "rank": 2, "train": "in/bias"},
        {"targets": "in/kernel", "rank": 3, "method": "dora"},
    ):
        config = jlora.LoraConfig(**options)
        lora |= jlora.split(PARAMS, config, KEY, axes=axes)[1]
    return trained(lora)


LORA = adapter()


def by_hand(lora):
    """The arrays that train and no others, as plain dicts: what an optimizer would see alone."""
    return {
        path: {name: getattr(node, name) for name in FIELDS[type(node).__name__]}
        for path, node in lora.items()
    }


def noise(tree, seed):
    """A gradient of every leaf, of the frozen ones too."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)]
    )


def steps(tx, tree, gradients):
    """The tree and the optimizer's state after one update with each gradient."""
    state = tx.init(tree)
    for grads in gradients:
        tree, state = step_of(tx)(tree, state, grads)
    return tree, state


@functools.cache
def step_of(tx):
    @jax.jit
    def step(tree, state, grads):
        updates, state = tx.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state

    return step


def assert_unmoved(tree, before):
    assert jax.tree.structure(tree) == jax.tree.structure(before)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True):
        assert np.array_equal(one, other)


def assert_nothing_else_moved(lora, before):
    assert jax.tree.structure(lora) == jax.tree.structure(before)
    for path, node in before.items():
        if "scaling" in vars(node):
            assert np.array_equal(lora[path].scaling, node.scaling)


def clipped(tx):
    return optax.chain(optax.clip_by_global_norm(0.5), tx)


def decayed(tree):
    """Weight decay as it should be: A and B, no magnitudes and no biases."""
    return {path: {name: name in "ab" for name in fields} for path, fields in tree.items()}


def tuned(mask):
    rates = {"learning_rate": 1e-2, "weight_decay": 0.1, "mask": mask}
    return optax.inject_hyperparams(optax.adamw, static_args="mask")(**rates)


def by_field(tree):
    """Labels for `optax.multi_transform`: B has an optimizer of its own."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "b" if jax.tree_util.keystr(path[-1:], simple=True) == "b" else "others",
        tree,
    )


# The optimizer, and where it takes a mask the one by hand.
OPTIMIZERS = {
    "sgd with momentum": lambda mask: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "lion": lambda mask: optax.lion(1e-2, weight_decay=0.1, mask=mask),
    "adamw": lambda mask: optax.adamw(1e-2, weight_decay=0.1, mask=mask),
    "adafactor": lambda mask: optax.adafactor(
        1e-2, min_dim_size_to_factor=2, weight_decay_rate=0.1, weight_decay_mask=mask
    ),
    "muon": lambda mask: optax.contrib.muon(1e-2, weight_decay=0.1, weight_decay_mask=mask),
    "schedule free": lambda mask: optax.contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "injected hyperparameters": tuned,
    "clipped": lambda mask: clipped(optax.adamw(1e-2, weight_decay=0.1, mask=mask)),
    "an average of updates": lambda mask: optax.chain(optax.sgd(1e-2), optax.ema(0.9)),
    "if finite": lambda mask: optax.apply_if_finite(optax.adam(1e-2), 3),
    "accumulated": lambda mask: optax.MultiSteps(
        optax.adam(1e-2), 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "two of them": lambda mask: optax.multi_transform(
        {"b": optax.adamw(1e-2, weight_decay=0.1, mask=mask), "others": optax.sgd(1e-2)}, by_field
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_does_to_a_and_b_what_it_does_to_them_alone(name):
    """Beside frozen leaves that have gradients too; its state holds what it holds alone."""
    tree = {"frozen": PARAMS, "lora": LORA}
    gradients = [noise(tree, seed) for seed in range(2)]
    tx = jlora.optimizer(OPTIMIZERS[name](jlora.decay_mask))
    moved, state = steps(tx, tree, gradients)

    alone = OPTIMIZERS[name](decayed)
    want, want_state = steps(alone, by_hand(LORA), [by_hand(grads["lora"]) for grads in gradients])
    assert_close(by_hand(moved["lora"]), want, 1e-5)
    assert_unmoved(moved["frozen"], PARAMS)
    assert_nothing_else_moved(moved["lora"], LORA)
    shapes, want_shapes = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)] for s in (state, want_state)
    )
    assert shapes == want_shapes
    before, after = by_hand(LORA), by_hand(moved["lora"])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before, after)))


@pytest.mark.parametrize("name", ["if finite", "accumulated"])
def test_a_gradient_that_is_no_number_counts_where_it_would_train(name):
    tree = {"frozen": PARAMS, "lora": LORA}
    tx = jlora.optimizer(OPTIMIZERS[name](None))
    grads = [noise(tree, seed) for seed in range(2)]

    def with_nan(part):
        return [{**g, part: jax.tree.map(lambda v: v * jnp.nan, g[part])} for g in grads]

    frozen_nan, _ = steps(tx, tree, with_nan("frozen"))
    assert_unmoved(frozen_nan, steps(tx, tree, grads)[0])
    assert_unmoved(steps(tx, tree, with_nan("lora"))[0], tree)


def test_the_averaged_parameters_of_schedule_free_are_those_of_a_and_b_alone():
    """`optax.contrib.schedule_free_eval_params`, by the mask and the inner state."""
    tx = optax.contrib.schedule_free_sgd(0.1)
    gradients = [noise(LORA, seed) for seed in range(3)]
    lora, state = steps(jlora.optimizer(tx), LORA, gradients)
    alone, want_state = steps(tx, by_hand(LORA), list(map(by_hand, gradients)))
    want = optax.contrib.schedule_free_eval_params(want_state, alone)

    inner = state.inner_states["train"].inner_state
    masked = jax.tree.map(
        lambda trains, leaf: leaf if trains else optax.MaskedNode(), jlora.mask(lora), lora
    )
    averaged = optax.contrib.schedule_free_eval_params(inner, masked)
    assert_close(by_hand(averaged), want, 1e-5)
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), want, alone)
    assert all(size > 1e-3 for size in jax.tree.leaves(difference))


# optax.multi_transform around it


def test_labels_tell_multi_transform_what_trains():
    tree = {"frozen": PARAMS, "lora": LORA}
    gradients = [noise(tree, seed) for seed in range(2)]
    adam = optax.adamw(1e-2, weight_decay=0.1)
    transforms = {"train": adam, "freeze": optax.set_to_zero()}
    for labels in (jlora.labels, jlora.labels(tree)):
        one, state = steps(optax.multi_transform(transforms, labels), tree, gradients)
        other, _ = steps(jlora.optimizer(adam), tree, gradients)
        assert_unmoved(one, other)
        trained_leaves = len(jax.tree.leaves(by_hand(LORA)))
        assert len(jax.tree.leaves(state)) == 1 + 2 * trained_leaves


def test_it_is_one_transform_among_others():
    """A head of one's own beside the adapter, each with its optimizer."""
    tree = {"head": normal(5, 3), "lora": LORA, "frozen": PARAMS}
    gradients = [noise(tree, seed) for seed in range(2)]
    adam, sgd = optax.adamw(1e-2, weight_decay=0.1), optax.sgd(0.1, momentum=0.9)
    tx = optax.multi_transform(
        {"adapter": jlora.optimizer(adam), "head": sgd},
        {"head": "head", "lora": "adapter", "frozen": "adapter"},
    )
    moved, _ = steps(tx, tree, gradients)
    head, _ = steps(sgd, tree["head"], [grads["head"] for grads in gradients])
    lora, _ = steps(adam, by_hand(LORA), [by_hand(grads["lora"]) for grads in gradients])
    assert_close(moved["head"], head, 1e-6)
    assert_close(by_hand(moved["lora"]), lora, 1e-5)
    assert_unmoved(moved["frozen"], PARAMS)
    assert_nothing_else_moved(moved["lora"], LORA)


# Optimizers that call the loss themselves


SMALL = {path: LORA[path] for path in ("in/kernel", "out/kernel")}


def forward(p, x):
    return jnp.tanh(x @ p["in"]["kernel"] / 3 + p["in"]["bias"]) @ p["out"]["kernel"]


lifted = jlora.lift(forward, strict=True)


def of_lora(lora, x=X, y=Y):
    return ((lifted(PARAMS, lora, x) - y) ** 2).mean()


def of_tree(tree, x=X, y=Y):
    return ((lifted(tree["frozen"], tree["lora"], x) - y) ** 2).mean()


def of_arrays(arrays, x=X, y=Y):
    """The loss by hand, of the arrays that train alone."""
    (into, out), (w, v) = arrays.values(), (PARAMS["in"]["kernel"], PARAMS["out"]["kernel"])
    w = w + SMALL["in/kernel"].scaling * into["a"] @ into["b"]
    w = into["magnitude"] * w / jax.lax.stop_gradient(jnp.linalg.norm(w, axis=0))
    v = v + SMALL["out/kernel"].scaling * out["a"] @ out["b"]
    merged = {"in": {"kernel": w, "bias": PARAMS["in"]["bias"]}, "out": {"kernel": v}}
    return ((forward(merged, x) - y) ** 2).mean()


def minimised(tx, loss, tree, count=4, extra=("value", "grad", "value_fn"), **data):
    """The tree and the losses of a run in which the optimizer may call the loss."""

    @jax.jit
    def step(tree, state):
        value, grad = jax.value_and_grad(loss)(tree, **data)
        known = {"value": value, "grad": grad, "value_fn": loss, "obj_fn": loss}
        given = {name: known[name] for name in extra}
        updates, state = tx.update(grad, state, tree, **given, **data)
        return optax.apply_updates(tree, updates), state, value

    state, losses = tx.init(tree), []
    for _ in range(count):
        tree, state, value = step(tree, state)
        losses.append(float(value))
    return tree, losses


def lbfgs():
    return optax.lbfgs(
        memory_size=3, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=6)
    )


def backtracking():
    search = optax.scale_by_backtracking_linesearch(10, store_grad=True)
    return optax.chain(optax.sgd(1.0), search)


@pytest.mark.parametrize("search", [lbfgs, backtracking])
def test_a_line_search_finds_what_it_finds_with_a_and_b_alone(search):
    """Its loss gets the whole adapter again, and the batch that goes with it."""
    batch = {"x": X[:5], "y": Y[:5]}
    want, losses = minimised(search(), of_arrays, by_hand(SMALL), **batch)
    assert losses[-1] < 0.8 * losses[0]
    lora, found = minimised(jlora.optimizer(search()), of_lora, SMALL, **batch)
    np.testing.assert_allclose(found, losses, rtol=1e-3)
    assert_close(by_hand(lora), want, 1e-2)
    assert_nothing_else_moved(lora, SMALL)


def test_a_line_search_beside_frozen_leaves_leaves_them():
    tree = {"frozen": PARAMS, "lora": SMALL}
    want, losses = minimised(backtracking(), of_arrays, by_hand(SMALL))
    moved, found = minimised(jlora.optimizer(backtracking()), of_tree, tree)
    np.testing.assert_allclose(found, losses, rtol=1e-3)
    assert_close(by_hand(moved["lora"]), want, 1e-2)
    assert_unmoved(moved["frozen"], PARAMS)
    assert_nothing_else_moved(moved["lora"], SMALL)


def test_a_second_derivative_is_taken_along_a_and_b_alone():
    """Sophia differentiates ``obj_fn`` along random signs of what it was given."""
    tx = optax.contrib.sophia(1e-2, weight_decay=0.0, update_interval=1)
    want, _ = minimised(tx, of_arrays, by_hand(SMALL), 2, extra=("obj_fn",))
    lora, _ = minimised(jlora.optimizer(tx), of_lora, SMALL, 2, extra=("obj_fn",))
    assert_close(by_hand(lora), want, 1e-3)
    assert_nothing_else_moved(lora, SMALL)


# Muon: A and B as the matrices that they stand for


WEIGHTS = {  # shape, axes
    "plain": ((7, 11), jlora.Axes()),
    "torch": ((7, 11), jlora.Axes((1,), (0,))),
    "stacked": ((2, 7, 11), jlora.Axes((1,), (2,), (0,))),
    "query": ((7, 4, 5), jlora.Axes((0,), (1, 2))),
    "out": ((4, 5, 7), jlora.Axes((0, 1), (2,))),
    "scanned query": ((2, 7, 4, 5), jlora.Axes((1,), (2, 3), (0,))),
    "experts of layers": ((3, 2, 7, 11), jlora.Axes((2,), (3,), (0, 1))),
    "kernel": ((3, 2, 5, 11), jlora.Axes((0, 1, 2), (3,))),
}


def of_weights(*names, **options):
    params = {name: normal(*shape) for name, (shape, _) in WEIGHTS.items() if name in names}
    axes = {name: WEIGHTS[name][1] for name in params}
    return adapted(params, axes, rank=2, **options)


def matrices(lora):
    """Each matrix of each A and B as a leaf of two dimensions."""
    found = {}
    for path, node in lora.items():
        stacks, rank = len(WEIGHTS[path][1].stack), 2
        count = int(np.prod(node.a.shape[:stacks]))
        found[path] = {
            "a": list(node.a.reshape(count, -1, rank)),
            "b": list(node.b.reshape(count, rank, -1)),
        }
    return found


def muon(**options):
    return optax.contrib.muon(1e-2, ns_steps=2, weight_decay=0.1, adam_weight_decay=0.1, **options)


def test_muon_trains_each_matrix_of_a_stack_as_if_alone():
    _, lora = of_weights("stacked", "out", "scanned query")
    gradients = [noise(lora, seed) for seed in range(2)]
    tx = jlora.optimizer(muon(muon_weight_dimension_numbers=jlora.muon_dimensions))
    moved, _ = steps(tx, lora, gradients)
    want, _ = steps(muon(), matrices(lora), list(map(matrices, gradients)))
    assert_close(matrices(moved), want, 1e-4)
    assert_nothing_else_moved(moved, lora)


def test_the_dimensions_are_those_of_a_and_b():
    _, lora = jax.eval_shape(lambda: of_weights(*WEIGHTS, method="dora"))
    dims = jlora.muon_dimensions({"frozen": {"w": normal(7, 5)}, "lora": lora})
    numbers = optax.contrib.MuonDimensionNumbers
    assert {path: (node.a, node.b) for path, node in dims["lora"].items()} == {
        "plain": (numbers((0,), (1,)), numbers((0,), (1,))),
        "torch": (numbers((0,), (1,)), numbers((0,), (1,))),
        "stacked": (numbers((1,), (2,)), numbers((1,), (2,))),
        "query": (numbers((0,), (1,)), numbers((0,), (1, 2))),
        "out": (numbers((0, 1), (2,)), numbers((0,), (1,))),
        "scanned query": (numbers((1,), (2,)), numbers((1,), (2, 3))),
        "experts of layers": (numbers((2,), (3,)), numbers((2,), (3,))),
        "kernel": (numbers((0, 1, 2), (3,)), numbers((0,), (1,))),
    }
    assert dims["frozen"] == {"w": None}
    for node in dims["lora"].values():
        assert (node.scaling, node.magnitude) == (None, None)


def test_muon_leaves_what_is_no_matrix_to_adam():
    """Magnitudes and biases: as Adam trains them by themselves, beside frozen leaves."""
    tree = {"frozen": PARAMS, "lora": LORA}
    gradients = [noise(tree, seed) for seed in range(2)]
    tx = jlora.optimizer(muon(muon_weight_dimension_numbers=jlora.muon_dimensions))
    moved, state = steps(tx, tree, gradients)

    def others(lora):
        return lora["in/kernel"].magnitude, lora["in/bias"].value

    adam = optax.adamw(1e-2, weight_decay=0.1, nesterov=True)
    want, _ = steps(adam, others(LORA), [others(grads["lora"]) for grads in gradients])
    assert_close(others(moved["lora"]), want, 1e-5)
    assert_unmoved(moved["frozen"], PARAMS)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    a_and_b = [LORA[path] for path in ("layers", "in/kernel", "out/kernel")]
    coefficients = 3  # of the Newton-Schulz iteration
    assert held == coefficients + sum(node.a.size + node.b.size for node in a_and_b) + 2 * sum(
        leaf.size for leaf in others(LORA)
    )


def test_a_tree_of_dimensions_serves_as_the_function_does():
    gradients = [noise(LORA, 0)]
    moved = [
        steps(jlora.optimizer(muon(muon_weight_dimension_numbers=given)), LORA, gradients)[0]
        for given in (jlora.muon_dimensions, jlora.muon_dimensions(LORA))
    ]
    assert_unmoved(*moved)


# optax.tree.map_params


@pytest.mark.parametrize(
    ("tx", "copies"),
    [
        (OPTIMIZERS["adamw"](None), 2),
        (OPTIMIZERS["sgd with momentum"](None), 1),
        (optax.contrib.schedule_free_sgd(0.1), 1),
        (OPTIMIZERS["injected hyperparameters"](jlora.decay_mask), 2),
        (OPTIMIZERS["accumulated"](None), 3),
        (optax.lbfgs(linesearch=None), 4),
    ],
    ids=["adamw", "momentum", "schedule free", "injected", "accumulated", "lbfgs"],
)
def test_the_state_of_what_trains_is_laid_out_as_its_parameters(tx, copies):
    """Each array of the state that belongs to a parameter is told whose it is."""
    tx = jlora.optimizer(tx)
    state = tx.init(LORA)
    named = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), LORA
    )
    found = []

    def belongs(leaf, path, param):
        if not masked(leaf):
            assert leaf.shape[leaf.ndim - param.ndim :] == param.shape
            found.append(path)
        return leaf

    def masked(node):
        return isinstance(node, optax.MaskedNode)

    mapped = optax.tree.map_params(tx, belongs, state, named, LORA, is_leaf=masked)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    trains = [f"{path}/{field}" for path, fields in by_hand(LORA).items() for field in fields]
    assert sorted(found) == sorted(copies * trains)
