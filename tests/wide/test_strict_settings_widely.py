"""JAX's strict settings change nothing: starts, those from data, and what runs without jit."""

import pytest
from laws import assert_close
from test_strict_settings import (
    KEY,
    STARTS,
    TWO,
    check_start,
    check_the_same,
    dense,
    normal,
    wide_and_finite,
)

import jlora


@pytest.mark.parametrize("name", ["every kind", "a scan"])
def test_lift_and_merge_give_the_same_without_jit(name):
    check_the_same(name, "no jit")


@pytest.mark.parametrize("setting", ["64 bits, no NaN", "no jit"])
@pytest.mark.parametrize("init", STARTS)
def test_every_start_draws_the_same(init, setting):
    check_start(init, setting)


BATCHES = [normal(9, 7, seed=seed) for seed in range(2)]


def from_data():
    """EVA and LoRA-GA, whose random directions are drawn as starts are."""
    config = jlora.LoraConfig(targets="w|v", rank=2)
    pair = jlora.split(TWO, config, KEY)

    def loss(p, x):
        return (dense(p, x) ** 2).mean()

    _, eva, _ = jlora.eva(dense, *pair, BATCHES, config, KEY)
    return eva, jlora.lora_ga(loss, *pair, BATCHES, config, KEY)[:2]


def test_starts_from_data_are_the_same():
    want = from_data()
    with wide_and_finite():
        got = from_data()
    assert_close(got, want, 1e-3)
