"""A model with a head for classification learns, and says, on a mesh what it does on one device."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import models_on_meshes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from laws import assert_close
from test_encoders import saved

import jlora
import train
from benchmarks.ahead._collectives import moved
from jlora import models, trainer
from jlora.models._layout import laid_out

LABELS = ("no", "yes", "so")
SIZES = {"vocabulary": 64, "width": 32, "layers": 2, "heads": 8, "mlp_width": 48, "max_length": 32}
ENCODERS = {
    "bert": models.EncoderConfig(**SIZES, labels=LABELS),
    "roberta": models.EncoderConfig(
        **SIZES, labels=LABELS, types=1, padding=1, own_dense=True, pooler=False
    ),
    # 5 and 3 that no axis divides
    "odd": models.EncoderConfig(
        **{**SIZES, "width": 30, "heads": 3, "mlp_width": 35}, labels=LABELS
    ),
}
ROWS, LENGTH = 8, 24


def alone(name):
    """The model on one device, with weights that are not all at their start."""
    if name in ENCODERS:
        config, kind = ENCODERS[name], models.EncoderModel
        params = jax.jit(models.Encoder(config).init)(jax.random.key(0), jnp.ones((1, 2), int))
        return kind(moved_a_little(params["params"]), config, tokenizer=None, name=name)
    model = models_on_meshes.on_one_device(name)
    return models.with_classifier(model, LABELS, jax.random.key(1))


def moved_a_little(params):
    return jax.tree.map(
        lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def batches(number):
    """Rows of any length, of one text or two, the same every other time; some only fill it."""
    draw = np.random.default_rng(number % 2)
    lengths = draw.integers(2, LENGTH, (ROWS, 1))
    return {
        "tokens": draw.integers(2, 64, (ROWS, LENGTH)).astype(np.int32),
        "mask": (np.arange(LENGTH) < lengths).astype(np.int32),
        "types": (np.arange(LENGTH) > lengths / 2).astype(np.int32),
        "labels": draw.integers(0, 3, ROWS).astype(np.int32),
        "weights": (np.arange(ROWS) < ROWS - number % 2).astype(np.float32),
    }


def begun(mesh, name):
    """(step, frozen, state, batches) on the mesh."""
    model, given = alone(name), batches
    if mesh is not None:
        layout = models.Layout(mesh, small=0)
        params = laid_out(layout, model.config, model.params)
        model = dataclasses.replace(model, params=params, layout=layout)
        given = trainer.sharded(batches, layout.rows)
    config = jlora.LoraConfig(
        targets="^layers/.*_proj/kernel", train=("^classifier/",), rank=4, alpha=6.0
    )
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((ROWS, 4), int))
    frozen, lora = jlora.split(model.params, config, jax.random.key(1), axes=axes)
    if mesh is not None:
        lora = jax.device_put(lora, model.layout.of_adapter(frozen, lora))
    tx = jlora.optimizer(models_on_meshes.OPTIMIZER)
    step = trainer.make_step(jlora.lift(functools.partial(models.classification_loss, model)), tx)
    return step, frozen, trainer.init(lora, tx, jax.random.key(2)), given


def trained(mesh, name, steps=12):
    """(losses, adapter) after so many steps."""
    step, frozen, state, given = begun(mesh, name)
    losses = []
    for update in trainer.iterate(step, frozen, state, given, steps=steps):
        losses.append(float(update.metrics["loss"]))
        state = update.state
    return losses, state.lora


@functools.cache
def wanted(name):
    losses, lora = trained(None, name)
    return losses, jax.tree.map(np.asarray, lora)


RUNS = [
    ("bert", {"data": 8}, "auto"),
    ("bert", {"fsdp": 8}, "explicit"),
    ("bert", {"data": 2, "fsdp": 2, "model": 2}, "auto"),
    ("roberta", {"data": 2, "model": 4}, "explicit"),
    ("roberta", {"fsdp": 8}, "auto"),
    ("odd", {"fsdp": 4, "model": 2}, "auto"),
    ("llama", {"data": 2, "fsdp": 2, "model": 2}, "explicit"),
]


@pytest.mark.parametrize(("name", "sizes", "axes"), RUNS)
def test_what_is_learned_is_what_one_device_learns(name, sizes, axes):
    losses, lora = wanted(name)  # before there is a mesh on which its arrays would lie
    assert losses[-1] < losses[1]
    mesh, context = models.make_mesh(sizes), contextlib.nullcontext()
    if axes == "explicit":
        types = (AxisType.Explicit,) * mesh.devices.ndim
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=types)
        context = jax.set_mesh(mesh)
    with context:
        got, its = trained(mesh, name)
    np.testing.assert_allclose(got, losses, atol=1e-5, rtol=0)
    assert_close(jax.tree.map(np.asarray, its), lora, 1e-4)


@pytest.mark.usefixtures("compiled_as_ever")
def test_encoders_gather_weights_a_layer_at_a_time_and_no_rows_of_others():
    step, frozen, state, given = begun(models.make_mesh({"fsdp": 8}), "bert")
    found = moved(step.lower(frozen, state, given(0)).compile().as_text(), 8)
    gathered = {shape for each in found if each.name == "all-gather" for shape in each.shapes}
    assert {(32, 32), (32, 48), (48, 32)} <= gathered
    whole = ROWS * LENGTH * SIZES["width"]
    assert max(np.prod(shape) for each in found for shape in each.shapes) < whole
    stacks = {leaf.shape for leaf in jax.tree.leaves(frozen["layers"]) if leaf.ndim == 3}
    assert not stacks & gathered


@pytest.mark.usefixtures("compiled_as_ever")
def test_with_rows_cut_encoders_move_gradients_alone():
    step, frozen, state, given = begun(models.make_mesh({"data": 8}), "bert")
    found = moved(step.lower(frozen, state, given(0)).compile().as_text(), 8)
    assert {each.name for each in found} == {"all-reduce"}
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(state.lora))
    assert sum(each.result * each.times for each in found) < 1.02 * trained + 2000


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
    """Runs train.py on a tiny BERT, on a mesh, and gives its metrics and results."""
    here = tmp_path_factory.mktemp("classification")
    (here / "bert").mkdir()
    saved(here / "bert", hidden_size=16, num_attention_heads=4, intermediate_size=12)
    texts = [
        {"text": ("a " if n % 3 else "c ") * (1 + n % 5), "label": n % 3 > 0} for n in range(41)
    ]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, texts)))

    def run(mesh, status=0, resume=False):
        flags = ["--task=classify", f"--model={here / 'bert'}", f"--data={here / 'rows.jsonl'}"]
        flags += ["--steps=4", "--batch-size=8", "--rank=2", "--max-length=9", "--eval-every=2"]
        out = here / mesh
        flags = ["--resume"] if resume else [*flags, f"--mesh={mesh}"]
        assert train.main([*flags, f"--out={out}"]) == status
        results = json.loads((out / "results.json").read_text())
        return trainer.read_metrics(out / "metrics.jsonl"), results

    return run


@pytest.fixture(scope="module", name="on_one")
def _on_one(run):
    return run("data=1")


def test_the_command_learns_and_measures_what_it_does_on_one_device(run, on_one):
    """Rows held out fill no batch on two devices."""
    assert_same_run(run("data=2,model=2"), on_one)


def test_a_signal_in_a_measurement_on_a_mesh_stops_behind_it_and_nothing_is_lost(
    run, on_one, monkeypatch, capsys
):
    count, whole = itertools.count(1), trainer.mean_loss

    def signalled(*args):
        if next(count) == 2:  # the first is before training
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(trainer, "mean_loss", signalled)
    rows, _ = run("data=2", 128 + signal.SIGTERM)
    assert len(rows) == 2
    assert "stopped by SIGTERM after step 2, which is saved" in capsys.readouterr().err
    assert_same_run(run("data=2", resume=True), on_one)


def assert_same_run(one, other):
    (metrics, results), (rows, measured) = one, other
    for got, want in zip(metrics, rows, strict=True):
        for name in ("loss", "eval/loss", "eval/accuracy", "tokens"):
            assert got.get(name) == pytest.approx(want.get(name), abs=1e-5), name
    assert results["after"]["labels"] == measured["after"]["labels"]
