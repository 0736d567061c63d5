"""What ``python -m benchmarks.ahead`` says before any compiler is asked."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh

from benchmarks._shared.llamas import LLAMAS
from benchmarks.ahead import _theory
from benchmarks.ahead._compiled import held, needed, on_a_chip, traced_flops
from benchmarks.ahead._links import CHIPS, seconds
from benchmarks.ahead._slices import SLICES
from benchmarks.ahead._steps import LENGTH, SHARING, STEPS, flat, layout_on, lora_step, model_on
from jlora import models
from jlora.trainer._flops import flops

EVERY = [each for slices in SLICES.values() for each in slices]


@pytest.mark.parametrize("name", SHARING)
def test_every_slice_has_each_weight_once(name):
    """But for norms, which are small, no chip has what another one of its slice has."""
    shapes = model_on(name, layout_on(jax.devices()[:1], 1)).params
    numbers = {path: math.prod(leaf.shape) for path, leaf in flat(shapes).items()}
    norms = sum(count for path, count in numbers.items() if path.endswith("norm/scale"))
    for each in EVERY:
        sharing = min(SHARING[name], each.chips)
        mesh = AbstractMesh((each.chips // sharing, sharing), ("fsdp", "model"))
        held = on_a_chip(model_on(name, models.Layout(mesh)).params)
        assert held == 2 * ((sum(numbers.values()) - norms) / each.chips + norms), each


@pytest.fixture(scope="module", name="steps")
def _steps():
    layout = layout_on(jax.devices()[:1], 1)
    return {trains: STEPS[trains]("1B", layout) for trains in STEPS}


def test_what_the_step_trains_is_what_it_says(steps):
    assert steps["full"].frozen is None
    assert jax.tree.structure(steps["LoRA"].frozen) == jax.tree.structure(steps["full"].state.lora)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(steps["LoRA"].state.lora)}
    assert dtypes == {"float32"}
    full = jax.tree.leaves(steps["full"].state.opt_state)
    assert {leaf.dtype.name for leaf in full if leaf.ndim} == {"float32"}


def test_lora_has_three_products_where_full_fine_tuning_has_four(steps):
    """Forward, forward again and one gradient, not two; the head is not computed again."""
    lora, full = (traced_flops(steps[trains])[0] for trains in ("LoRA", "full"))
    assert 0.72 < lora / full < 0.76


@pytest.mark.parametrize(("base", "bits"), [("int8", 8.02), ("nf4", 4.13), ("Q4_K", 4.5)])
def test_a_base_in_a_few_bits_is_that_small_and_trains_as_the_plain_one_does(steps, base, bits):
    plain, small = steps["LoRA"], lora_step("1B", layout_on(jax.devices()[:1], 1), base)
    are = {path: leaf for path, leaf in flat(plain.frozen).items() if path.endswith("kernel")}
    kept = {path: leaf for path, leaf in flat(small.frozen).items() if path in are}
    count = sum(math.prod(leaf.shape) for leaf in are.values())
    assert 8 * on_a_chip(kept) / count == pytest.approx(bits, rel=2e-3)
    assert held(plain)[0] - held(small)[0] == on_a_chip(are) - on_a_chip(kept)
    assert small.state == plain.state
    # decoding has no product, and none of the plain step's is done once more
    assert traced_flops(small) == traced_flops(plain)


def test_theory_gathers_weights_twice_and_adds_gradients_of_what_trains(steps):
    config = LLAMAS["1B"]
    width, inner = config.width, config.mlp_width
    a_layer = 2 * width**2 + 2 * width * 512 + 3 * width * inner
    layers, table = 2 * 16 * a_layer, 2 * config.vocabulary * width
    norms = 2 * width * (2 * 16 + 1)
    lora, full = (_theory.needed("1B", steps[trains], 4, 1) for trains in ("LoRA", "full"))
    assert lora.weights == full.weights == 3 / 4 * (2 * layers + table)
    assert full.gradients == 3 / 4 * (layers + table + norms)
    assert 0 < lora.gradients < full.gradients / 40
    assert lora.activations == full.activations == 0
    shared = _theory.needed("1B", steps["LoRA"], 2, 2)
    assert shared.weights == 1 / 2 * (2 * layers + table) / 2
    assert shared.activations == (5 * 16 + 2) * LENGTH * width * 2


def test_between_nodes_the_slower_links_count():
    h100, v5e = CHIPS["h100"], CHIPS["v5e"]
    assert seconds(v5e, 3e9, 1e9, chips=64, sharing=4) == pytest.approx(4e9 / 200e9)
    assert seconds(h100, 3e9, 1e9, chips=8, sharing=4) == pytest.approx(4e9 / 450e9)
    # eight links out of a node, for four groups
    assert seconds(h100, 3e9, 1e9, chips=16, sharing=4) == pytest.approx(3e9 / 100e9 + 1e9 / 450e9)


def test_products_under_a_scan_count_each_time():
    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    jaxpr = jax.make_jaxpr(scanned)(jax.numpy.ones((7, 11)), jax.numpy.ones((3, 11, 11)))
    assert flops(jaxpr.jaxpr) == 3 * 2 * 7 * 11 * 11
    assert flops(jaxpr.jaxpr, loops_once=True) == 2 * 7 * 11 * 11


@pytest.mark.parametrize(
    "message",
    [
        "the total memory required for HLO temporaries (16.50G) exceeds available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.",
    ],
)
def test_what_does_not_fit_is_read_from_the_compilers_error(message):
    assert needed(message) == 33 * 2**29


def test_other_errors_of_the_compiler_are_no_answer():
    with pytest.raises(RuntimeError, match="not for memory: INTERNAL"):
        needed("INTERNAL: something else")
