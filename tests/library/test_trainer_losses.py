"""The loss of labels is optax's at the places that count, and nothing else reaches it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jlora import trainer

KEY = jax.random.key(3)
LOGITS = 9 * jax.random.normal(KEY, (3, 5, 7))
LABELS = jax.random.randint(KEY, (3, 5), 0, 7)
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], bool)


def by_optax(logits, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return (losses * weights).sum()


@pytest.mark.parametrize(
    "weights", [MASK, MASK * 0.5, np.ones((3, 5))], ids=["mask", "half", "all"]
)
def test_values_and_gradients_are_those_of_optax(weights):
    total, count = trainer.cross_entropy(LOGITS, LABELS, weights)
    assert count == weights.sum()
    np.testing.assert_allclose(total, by_optax(LOGITS, weights), rtol=1e-6)
    got, want = (
        jax.grad(loss)(LOGITS)
        for loss in (
            lambda logits: trainer.cross_entropy(logits, LABELS, weights)[0],
            lambda logits: by_optax(logits, weights),
        )
    )
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_without_a_mask_every_place_counts_once():
    total, count = trainer.cross_entropy(LOGITS[0, 0], LABELS[0, 0])
    assert count == 1
    np.testing.assert_allclose(total, -jax.nn.log_softmax(LOGITS[0, 0])[LABELS[0, 0]], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_stands_at_a_masked_place_reaches_neither_loss_nor_gradient(bad):
    loss = jax.value_and_grad(lambda x, y: trainer.cross_entropy(x, y, MASK)[0])
    want = loss(LOGITS, LABELS)
    got = loss(jnp.where(MASK[..., None], LOGITS, bad), jnp.where(MASK, LABELS, -100))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_label_that_is_no_class_is_never_silent():
    for label in (-1, 7):
        assert np.isnan(trainer.cross_entropy(LOGITS, LABELS.at[0, 0].set(label), MASK)[0])


def test_half_precision_is_computed_in_full():
    narrow = LOGITS.astype(jnp.bfloat16)
    total, count = trainer.cross_entropy(narrow, LABELS, MASK)
    assert total.dtype == count.dtype == jnp.float32
    np.testing.assert_allclose(total, by_optax(narrow.astype(jnp.float32), MASK), rtol=1e-6)
