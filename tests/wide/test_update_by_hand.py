"""The updates of a run are those that its flags say, written out here with plain optax."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
import train
from jlora import checkpoint, data, models, trainer

STEPS, WARMUP, PEAK, SEED = 4, 2, 0.02, 5
RATES = {  # of each update, as shares of the peak: up in a line, and down to zero behind the last
    "cosine": (0.5, 0.75, 1.0, 0.5),
    "linear": (0.5, 0.75, 1.0, 0.5),
    "constant": (0.5, 0.75, 1.0, 1.0),
    "wsd": (0.5, 0.75, 1.0, 1.0),  # the fall's last fifth is one update: from 1 on
}
NORMS = "norm/scale"  # train whole, and must not decay: those of layers are stacked
RUNS = {
    "all-at-once": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "clip": 0.3,
        "weight-decay": 0.7,
        "lora-plus": 3.0,
        "train": NORMS,
    },
    "freeze-a-in-parts": {
        "optimizer": "sgd",
        "schedule": "linear",
        "clip": 0.2,
        "weight-decay": 0.7,
        "freeze-a": True,
        "accumulate": 3,
    },
    "dropout": {"optimizer": "sgd", "schedule": "constant", "clip": 0, "dropout": 0.4},
}


@pytest.fixture(scope="module")
def small(make_llama, tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "small", layers=1, width=20)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Rows of one length whose answers differ in length."""
    path = tmp_path_factory.mktemp("data") / "uneven.jsonl"
    lines = [{"prompt": "?" * (9 - n), "completion": "yes please"[:n]} for n in range(1, 9)] * 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def batches_of(tokenizer, rows):
    kept, _ = data.hold_out(data.read_rows(rows), 1, seed=SEED)
    examples, _ = data.encode(kept, tokenizer, max_length=96)
    return data.Batches(examples, batch_size=6, seed=SEED)


def mean_loss(scores, batch):
    """Over the answers' tokens of the batch."""
    scores = jnp.take_along_axis(scores, batch["positions"][..., None], axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"])
    return (losses * batch["weights"]).sum() / batch["weights"].sum()


def written_out(model, rows, settings):
    """(what trains after the updates, their losses): nothing of jlora's but the start."""
    config = jlora.LoraConfig(
        targets="(q|k|v|o|gate|up|down)_proj",
        rank=3,
        alpha=16,
        train=settings.get("train", ()),
        dropout=settings.get("dropout", 0.0),
    )
    axes = jlora.trace_axes(model.apply, model.params, jnp.ones((1, 5), int))
    frozen, start = jlora.split(model.params, config, jax.random.key(SEED), axes=axes)
    trained = {
        path: {"value": node.value} if path.endswith(NORMS) else {"a": node.a, "b": node.b}
        for path, node in start.items()
    }
    direction = {"adamw": optax.scale_by_adam(), "sgd": optax.identity()}[settings["optimizer"]]
    plus, clip = settings.get("lora-plus", 1.0), settings["clip"]
    state, losses = direction.init(trained), []

    def weights(trained):
        tree = jax.tree.map(lambda leaf: leaf, model.params)
        for path, parts in trained.items():
            *above, last = path.split("/")
            place = tree
            for name in above:
                place = place[name]
            place[last] = (
                parts["value"]
                if path.endswith(NORMS)
                else place[last] + 16 / 3 * jnp.einsum("lir,lro->lio", parts["a"], parts["b"])
            )
        return tree

    def mean(trained, batch, key):
        if "dropout" not in settings:
            return mean_loss(model.apply(weights(trained), batch["tokens"]), batch)
        lora = {
            path: start[path].__class__(**_fields(start[path]) | trained[path]) for path in start
        }
        return mean_loss(
            jlora.lift(model.apply)(frozen, lora, batch["tokens"], dropout_key=key), batch
        )

    gradient = jax.jit(jax.value_and_grad(mean))
    batches = batches_of(model.tokenizer, rows)
    for number in range(STEPS):
        key = jax.random.fold_in(jax.random.key(SEED), number + 1)
        loss, grads = gradient(trained, batches(number), key)
        losses.append(float(loss))
        if settings.get("freeze-a"):
            grads = {path: {**its, "a": jnp.zeros_like(its["a"])} for path, its in grads.items()}
        if clip:
            norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
            assert norm > clip
            grads = jax.tree.map(lambda g, norm=norm: g * clip / norm, grads)
        moves, state = direction.update(grads, state, trained)
        rate = PEAK * RATES[settings["schedule"]][number]
        for path, its in trained.items():
            for name, value in its.items():
                if name == "a" and settings.get("freeze-a"):
                    continue
                decay = 0.0 if name == "value" else settings.get("weight-decay", 0.0)
                faster = plus if name == "b" else 1.0
                move = moves[path][name] + decay * value
                trained[path] = {**trained[path], name: value - rate * faster * move}
    return trained, losses


def _fields(node):
    return {name: getattr(node, name) for name in ("a", "b", "scaling", "axes", "dropout")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_makes_the_updates_that_its_flags_say(small, uneven, tmp_path, name):
    settings, out = RUNS[name], tmp_path / "run"
    flags = {
        "model": small,
        "data": uneven,
        "out": out,
        "steps": STEPS,
        "warmup": WARMUP / STEPS,
        "learning-rate": PEAK,
        "seed": SEED,
        "batch-size": 6,
        "rank": 3,
        "max-length": 96,
        "eval-rows": 1,
        "max-new-tokens": 1,
        **settings,
    }
    told = [f"--{key}" if value is True else f"--{key}={value}" for key, value in flags.items()]
    assert train.main(told) == 0
    model = models.load(small)
    wanted, losses = written_out(model, uneven, settings)
    seen = [row["loss"] for row in trainer.read_metrics(out / "metrics.jsonl")]
    np.testing.assert_allclose(seen, losses, rtol=1e-5)
    lora, _ = checkpoint.restore(out / "adapter", base=model.params)
    assert set(lora) == set(wanted)
    for path, parts in wanted.items():
        for field, value in parts.items():
            np.testing.assert_allclose(
                getattr(lora[path], field), value, rtol=2e-4, atol=2e-6, err_msg=f"{path} {field}"
            )


def test_an_answer_that_only_begins_or_ends_as_the_wanted_one_is_no_match(
    flags, finished, rows, tiny, tmp_path
):
    answers = json.loads((finished / "results.json").read_text())["before"]["answers"]
    assert all(len(answer) > 2 for answer in answers)
    _, held_out = data.hold_out(data.read_rows(rows), 3, seed=0)
    wanted = dict(
        zip(
            [data.text_of(row[0]) for row in held_out],
            [answers[0], answers[1][:-1], answers[2] + "W"],
            strict=True,
        )
    )
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    changed = [{**line, "completion": wanted.get(line["prompt"], "even")} for line in lines]
    path, out = tmp_path / "rows.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert train.main([*flags, f"--data={path}", "--steps=1", f"--out={out}"]) == 0
    before = json.loads((out / "results.json").read_text())["before"]
    assert before["answers"] == answers
    assert before["exact_match"] == 1 / 3
