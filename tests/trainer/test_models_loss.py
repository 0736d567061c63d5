"""The loss in chunks is the loss: values, gradients, what is in memory and what is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import data
from jlora._cross_entropy import cross_entropy
from jlora.models import answer_loss, load
from jlora.models._net import _loss

ROWS, WIDTH, VOCABULARY = 29, 7, 53
KEYS = jax.random.split(jax.random.key(0), 4)
HEAD = {"w": jax.random.normal(KEYS[0], (WIDTH, VOCABULARY))}
HIDDEN = jax.random.normal(KEYS[1], (ROWS, WIDTH))
LABELS = jax.random.randint(KEYS[2], (ROWS,), 0, VOCABULARY)
WEIGHTS = jax.random.uniform(KEYS[3], (ROWS,))


def loss(head, rows, labels, weights):
    scores = rows @ head["w"]
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def assert_near(got, want):
    """Within float32's rounding of the largest value."""

    def near(one, other):
        one, other = np.asarray(one), np.asarray(other)
        size = np.abs(other).max() or 1  # what does not train has no gradient
        np.testing.assert_allclose(one / size, other / size, rtol=0, atol=2e-5)

    jax.tree.map(near, got, want)


@functools.cache
def value_and_gradients(fn):
    """By the head, by the rows, and by both, of a loss that is not linear in what is summed."""

    @jax.jit
    def each(*args):
        grads = [jax.grad(lambda *a: fn(*a) ** 2, n)(*args) for n in (0, 1, (0, 1))]
        return fn(*args), grads

    return each(HEAD, HIDDEN, LABELS, WEIGHTS)


@pytest.mark.parametrize("chunk", [1, 10, 29])
@pytest.mark.parametrize("kind", [_loss.sum_in_chunks, _loss.recomputed_in_chunks])
def test_values_and_gradients_are_those_of_the_whole(chunk, kind):
    assert_near(value_and_gradients(kind(loss, chunk=chunk)), value_and_gradients(loss))


def test_cross_entropy_is_that_of_optax_and_its_gradient_no_scatter():
    def own(scores):
        return cross_entropy(scores, LABELS, WEIGHTS)[0]

    def wanted(scores):
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, LABELS)
        return jnp.sum(WEIGHTS * losses)

    scores = (HIDDEN @ HEAD["w"]).at[:, LABELS[0] - 1].set(-jnp.inf)  # a token that is ruled out
    possible = LABELS[0] - 1 != LABELS
    assert_near(jax.grad(own)(scores)[possible], jax.grad(wanted)(scores)[possible])
    scores = HIDDEN @ HEAD["w"]
    assert_near(own(scores), wanted(scores))
    assert_near(jax.grad(own)(scores), jax.grad(wanted)(scores))
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(own))(scores))
    assert "scatter" in str(jax.make_jaxpr(jax.grad(wanted))(scores))


@pytest.mark.parametrize(("label", "weight"), [(-100, 1), (-1, 1), (VOCABULARY, 1), (-100, 0)])
def test_a_label_that_is_no_token_is_not_learned_in_silence(label, weight):
    labels, weights = LABELS.at[3].set(label), WEIGHTS.at[3].set(weight)
    total = cross_entropy(HIDDEN @ HEAD["w"], labels, weights)[0]
    assert bool(jnp.isfinite(total)) == (weight == 0)


@pytest.mark.parametrize(
    ("width", "dtype", "rows"), [(576, "float32", 288), (2048, "bfloat16", 512)]
)
def test_scores_of_a_chunk_take_half_of_what_the_head_takes(width, dtype, rows):
    assert _loss.rows_at_a_time(width, dtype) == rows
    vocabulary = 49152
    assert 4 * rows * vocabulary == 0.5 * width * vocabulary * jnp.dtype(dtype).itemsize


def test_it_composes_with_vmap_over_rows_and_with_remat():
    in_chunks = _loss.sum_in_chunks(loss, chunk=10)
    two = jnp.stack([HIDDEN, 2 * HIDDEN])

    def summed(fn):
        return lambda two: jax.vmap(fn, (None, 0, None, None))(HEAD, two, LABELS, WEIGHTS).sum()

    got = jax.jit(jax.grad(jax.checkpoint(summed(in_chunks))))(two)
    assert_near(got, jax.jit(jax.grad(summed(loss)))(two))


def test_a_frozen_head_costs_two_products_and_one_chunk_of_scores():
    """One product for the scores, one for the rows' gradient; none for the head's."""
    jax.config.update("jax_disable_most_optimizations", False)  # costs are the compiler's as it is
    rows, width, vocabulary = 64, 32, 4096
    shapes = [(width, vocabulary), (rows, width), (rows,), (rows,)]
    kinds = ["float32", "float32", "int32", "float32"]
    head, *rest = map(jax.ShapeDtypeStruct, shapes, kinds)

    def compiled(fn, argnums=1):
        return jax.jit(jax.grad(fn, argnums)).lower({"w": head}, *rest).compile()

    whole, chunked = (compiled(_loss.sum_in_chunks(loss, chunk=chunk)) for chunk in (64, 8))
    product = 2 * rows * width * vocabulary
    assert 2 * product < whole.cost_analysis()["flops"] < 2.5 * product
    with_head = compiled(_loss.sum_in_chunks(loss, chunk=64), (0, 1))
    assert with_head.cost_analysis()["flops"] > 3 * product
    scores = 4 * rows * vocabulary
    assert whole.memory_analysis().temp_size_in_bytes > scores
    assert chunked.memory_analysis().temp_size_in_bytes < 0.5 * scores
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("adapts", ["proj", "embed"])
def test_the_loss_of_answers_is_that_of_all_scores(tiny, monkeypatch, adapts):
    """Through `lift`, which keeps a head that trains factored where it is told of it."""
    model = load(tiny)
    monkeypatch.setattr(_loss, "_SHARE", 5.5 / model.config.width)  # 5 of 8 rows at a time
    batch = {
        "tokens": jax.random.randint(KEYS[0], (2, 11), 0, 250),
        "positions": jnp.array([[3, 4, 5, 0], [6, 7, 8, 9]]),
        "labels": jnp.array([[9, 8, 7, 0], [5, 4, 3, 2]]),
        "weights": jnp.array([[1.0, 1, 1, 0], [1, 1, 1, 1]]),
    }

    def in_chunks(params, batch, head_trains=adapts == "embed"):
        return answer_loss(model, params, batch, head_trains=head_trains)[0]

    def whole(params, batch):
        scores = model.apply(params, batch["tokens"])
        scores = jnp.take_along_axis(scores, batch["positions"][..., None], axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"])
        return jnp.sum(losses * batch["weights"])

    traced = str(jax.make_jaxpr(in_chunks)(model.params, batch))
    assert "f32[4,259]" in traced  # two chunks
    assert "f32[8,259]" not in traced
    axes = jlora.trace_axes(whole, model.params, batch)
    config = jlora.LoraConfig(targets=adapts, rank=2, init="orthogonal")
    frozen, lora = jlora.split(model.params, config, KEYS[3], axes=axes)
    want = jax.value_and_grad(lambda f, lora, b: whole(jlora.merge(f, lora), b), 1)
    want = jax.jit(want)(frozen, lora, batch)
    lifted = jlora.lift(in_chunks, strict=True)
    assert_near(jax.jit(jax.value_and_grad(lifted, 1))(frozen, lora, batch), want)
    if adapts == "embed":
        untold = jax.jit(jax.value_and_grad(lambda *trees: lifted(*trees, head_trains=False), 1))(
            frozen, lora, batch
        )
        assert_near(untold, want)
    assert int(answer_loss(model, model.params, batch)[1]) == 7


def test_the_first_batch_gives_every_b_a_gradient_and_an_a_none(tiny):
    """Else a target would not be in the way of the loss, and nothing would say so."""
    model = load(tiny)
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 9), jnp.int32))
    config = jlora.LoraConfig(targets="all-linear", rank=2)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    rows = [[{"role": "user", "content": "7?"}, {"role": "assistant", "content": "odd"}]] * 2
    examples, _ = data.encode(rows, model.tokenizer, max_length=64)
    batch = data.Batches(examples, batch_size=2)(0)
    loss = jlora.lift(functools.partial(answer_loss, model))
    gradient = jax.jit(jax.grad(lambda lora: jnp.divide(*loss(frozen, lora, batch))))(lora)
    assert len(gradient) == 7
    for path, node in gradient.items():
        layers = np.abs(node.b).reshape(node.b.shape[0], -1)
        assert (np.isfinite(layers).all(1) & layers.any(1)).all(), path  # each layer's own
        assert not np.asarray(node.a).any(), path  # B is zero yet
