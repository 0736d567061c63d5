"""Each transformation of the logits does what its definition says; draws follow what is left."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jlora.models import Sampling
from jlora.models._answers import _sampling

TOKENS = 13
quick = settings(max_examples=40, deadline=None)
# Whole eighths, so that distinct logits are so in probability too.
eighths = hnp.arrays(np.int32, TOKENS, elements=st.integers(-80, 80), unique=True)
logits_of = eighths.map(lambda whole: whole.astype(np.float32) / 8)
compiled = {
    name: jax.jit(getattr(_sampling, name))
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
}


def kept(filtered, logits):
    """Which logits a filter left; those are as they were, the others can't be drawn."""
    filtered = np.asarray(filtered)
    stays = np.isfinite(filtered)
    assert (filtered[stays] == logits[stays]).all()
    assert (filtered[~stays] == -np.inf).all()
    return stays


def softmax(logits):
    wide = np.exp(np.float64(logits) - np.max(logits))
    return wide / wide.sum()


@quick
@given(logits_of, st.integers(1, TOKENS + 2))
def test_top_k_keeps_exactly_the_k_highest(logits, k):
    stays = kept(compiled["top_k"](logits, np.int32(k)), logits)
    assert stays.sum() == min(k, TOKENS)
    assert stays.all() or logits[stays].min() > logits[~stays].max()


def test_top_k_keeps_what_equals_the_kth():
    logits = np.array([[2.0, 7.0, 2.0, -1.0, 2.0], [-3.0, -0.5, -3.0, -3.5, -4.0]], np.float32)
    stays = kept(compiled["top_k"](logits, np.int32(2)), logits)
    assert stays.tolist() == [[True, True, True, False, True], [True, True, True, False, False]]


@quick
@given(logits_of, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    stays = kept(compiled["top_p"](logits, np.float32(p)), logits)
    mass = np.sort(softmax(logits)[stays])
    assert mass.sum() >= p - 1e-5
    assert mass[1:].sum() < p + 1e-5
    assert stays.all() or logits[stays].min() > logits[~stays].max()


@quick
@given(logits_of, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(logits, share):
    stays = kept(compiled["min_p"](logits, np.float32(share)), logits)
    relative = np.exp(np.float64(logits) - logits.max())
    assert (relative[stays] >= share * (1 - 1e-5)).all()
    assert (relative[~stays] <= share * (1 + 1e-5)).all()


@quick
@given(
    logits_of,
    hnp.arrays(bool, TOKENS),
    st.floats(0.25, 4.0, width=32),
)
def test_the_penalty_makes_what_was_said_less_likely_whatever_its_sign(logits, said, penalty):
    got = np.asarray(compiled["repetition_penalty"](logits, said, np.float32(penalty)))
    assert (got[~said] == logits[~said]).all()
    positive, negative = said & (logits > 0), said & (logits < 0)
    np.testing.assert_allclose(got[positive], logits[positive] / penalty, rtol=1e-6)
    np.testing.assert_allclose(got[negative], logits[negative] * penalty, rtol=1e-6)


@quick
@given(logits_of, st.floats(0.1, 8.0))
def test_temperature_divides_the_differences(logits, degree):
    got = np.asarray(compiled["temperature"](logits, np.float32(degree)))
    np.testing.assert_allclose(got, (logits - logits.max()) / degree, rtol=1e-5)


LOGITS = np.array([1.0, -0.5, 2.25, 0.0, 1.5, -3.0, 0.75], np.float32)
COUNT = 20_000


def draws(sampling, said=None):
    """How often each token is drawn, by rows that differ in their key alone."""
    keys = jax.random.split(jax.random.key(7), COUNT)
    rows = jnp.broadcast_to(LOGITS, (COUNT, len(LOGITS)))
    said = None if said is None else jnp.broadcast_to(jnp.asarray(said), rows.shape)
    tokens = _sampling.draw(rows, sampling.numbers(), keys, said)
    return np.bincount(np.asarray(tokens), minlength=len(LOGITS)) / COUNT


def test_draws_follow_the_probabilities():
    probabilities = softmax(LOGITS / 1.5)
    error = np.sqrt(probabilities * (1 - probabilities) / COUNT)
    assert (np.abs(draws(Sampling(temperature=1.5)) - probabilities) < 4 * error).all()


def test_filters_and_penalty_combine_in_the_order_that_they_are_listed():
    sampling = Sampling(temperature=1.5, top_k=4, top_p=0.8, min_p=0.1, repetition_penalty=1.5)
    said = np.array([False, False, True, False, False, True, False])
    logits = LOGITS.copy()
    logits[2] /= 1.5  # to 1.5, as likely as token 4
    logits[5] *= 1.5
    probabilities = softmax(np.where(np.isin(np.arange(7), [0, 2, 4, 6]), logits / 1.5, -np.inf))
    assert sorted(probabilities[probabilities > 0]) == pytest.approx(
        [0.1825, 0.2156, 0.3009, 0.3009], abs=2e-4
    )
    probabilities[6] = 0.0  # the other three reach 0.8; without the penalty, two would
    probabilities /= probabilities.sum()
    error = np.sqrt(probabilities * (1 - probabilities) / COUNT)
    assert (np.abs(draws(sampling, said) - probabilities) <= 4 * error).all()


@pytest.mark.parametrize("degree", [0.0, 1e-6, 1e-30, 1e-42, 1e-60])
def test_the_lower_the_temperature_the_greedier_down_to_greedy(degree):
    shares = draws(Sampling(temperature=degree, top_k=3, top_p=0.9))
    assert shares.tolist() == np.eye(7)[2].tolist()


def test_numbers_in_use_decide_what_compiles_and_their_values_do_not():
    assert set(Sampling().numbers()) == set()
    assert set(Sampling(top_k=5, top_p=0.5, min_p=0.1).numbers()) == set()  # greedy all the same
    every = Sampling(0.7, 5, 0.5, 0.1, 1.2).numbers()
    assert set(every) == {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
    traces = []

    @jax.jit
    def filtered(logits, numbers, said):
        traces.append(None)
        return _sampling.filtered(logits, numbers, said)

    said = np.zeros(7, bool)
    results = {
        np.isfinite(filtered(LOGITS, Sampling(0.7, k, 0.99, 0.001, 1.2).numbers(), said)).sum()
        for k in (1, 2, 3)
    }
    assert (results, len(traces)) == ({1, 2, 3}, 1)


def test_numbers_out_of_range_are_named_all_at_once():
    with pytest.raises(ValueError, match="sampling: ") as raised:
        Sampling(temperature=-1, top_k=-2, top_p=0, min_p=1.5, repetition_penalty=0)
    assert str(raised.value) == (
        "sampling: temperature is -1: expected at least 0 (0 is greedy); "
        "top_k is -2: expected a whole number of at least 0 (0 is all tokens); "
        "top_p is 0: expected above 0 and at most 1 (1 is all tokens); "
        "min_p is 1.5: expected from 0 (all tokens) to 1; "
        "repetition_penalty is 0: expected above 0 (1 is none)"
    )
    for bad in ({"temperature": float("nan")}, {"top_k": 2.5}, {"top_p": float("nan")}):
        with pytest.raises(ValueError, match=f"sampling: {next(iter(bad))} is"):
            Sampling(**bad)
