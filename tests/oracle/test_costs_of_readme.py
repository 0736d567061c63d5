"""Law 4 on the models of the table in README: a lifted step costs what a hand-written one costs."""

import pytest

from benchmarks.costs._models import MODELS
from benchmarks.costs._step import step
from benchmarks.costs._ways import Way

# qwix 0.1.8, which stands beside, calls what Flax 0.12 gives up
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# by hand, activations are computed a second time, transposed, for the gradient of B
TRANSPOSED = ("linen transformer, 8 layers", "NNX attention, 2 layers")


@pytest.mark.parametrize("name", MODELS)
def test_a_lifted_step_costs_what_it_costs_by_hand(name):
    make, x = MODELS[name]
    ways: dict[str, Way] = make()
    lifted, by_hand = (step(ways[way], x).cost for way in ("jlora.lift", "by hand"))
    at_least = 0.99 if name in TRANSPOSED else 0.995
    assert at_least * by_hand.flops <= lifted.flops <= 1.005 * by_hand.flops
    for field in ("bytes_accessed", "temporary", "arguments"):
        assert getattr(lifted, field) <= 1.02 * getattr(by_hand, field), field
    full = step(ways["everything"], x).cost
    assert lifted.flops < 0.75 * full.flops
    assert lifted.arguments < 0.45 * full.arguments
