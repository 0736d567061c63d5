"""What a step will need is known from shapes: of every method, as of the arrays themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora import trainer

KEY = jax.random.key(3)
ROWS, WIDTH, OUT, RANK = 6, 16, 12, 2


def loss(params, x):
    hidden = jnp.tanh(x @ params["in"])
    return (jnp.tanh(hidden @ hidden.T) @ hidden @ params["out"]).sum(), x.shape[0]


def parts(rows=ROWS, accumulate=1, **options):
    """(step, frozen, state, batch) by shape alone."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    config = jlora.LoraConfig(targets="in|out", rank=RANK, **options)
    params = {"in": shape(WIDTH, WIDTH), "out": shape(WIDTH, OUT)}
    frozen, lora = jax.eval_shape(lambda params: jlora.split(params, config, KEY), params)
    tx = jlora.optimizer(optax.adamw(1e-3))
    state = jax.eval_shape(lambda lora: trainer.init(lora, tx, KEY), lora)
    step = trainer.make_step(jlora.lift(loss), tx, accumulate=accumulate)
    return step, frozen, state, shape(rows, WIDTH)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "dora"}, {"init": "pissa"}, {"init": "orthogonal", "dropout": 0.1}],
    ids=str,
)
def test_shapes_alone_say_what_the_arrays_take(options):
    step, *shapes = parts(**options)
    its = trainer.outlook(step, *shapes, tokens=ROWS)
    filled = jax.tree.map(
        lambda leaf: (
            jax.random.key(0)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else np.ones(leaf.shape, leaf.dtype)
        ),
        shapes,
    )
    frozen, state, batch = filled
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert its.frozen == size(frozen) == 4 * WIDTH * (WIDTH + OUT)
    assert its.adapter == size(state.lora)
    assert its.optimizer == size(state.opt_state) > 2 * 4 * RANK * (WIDTH * 3 + OUT)
    assert its.inputs == batch.nbytes
    held = its.frozen + its.adapter + its.optimizer + its.inputs + its.temporary
    assert held <= its.peak < 1.2 * held
    assert trainer.outlook(step, *filled, tokens=ROWS) == its


def test_flops_are_those_of_the_products_with_loops_in_full():
    def scanned(params, _, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params)[0]

    weights, x = jax.ShapeDtypeStruct((5, 7, 7), "float32"), jax.ShapeDtypeStruct((3, 7), "float32")
    its = trainer.outlook(jax.jit(scanned), weights, (), x, tokens=3)
    assert its.flops == 5 * 2 * 3 * 7 * 7
    assert (its.adapter, its.optimizer, its.inputs) == (0, 0, 4 * 3 * 7)
    convolved = jax.jit(lambda w, _, x: jax.lax.conv(x, w, (1, 1), "VALID"))
    kernel, image = jnp.ones((11, 3, 2, 2)), jnp.ones((1, 3, 5, 6))
    assert trainer.outlook(convolved, kernel, (), image).flops == 2 * (11 * 4 * 5) * (3 * 2 * 2)
    ragged = jax.jit(lambda w, sizes, x: jax.lax.ragged_dot(x, w, sizes))
    experts, sizes = jnp.ones((4, 7, 5)), jnp.ones(4, int)
    assert trainer.outlook(ragged, experts, sizes, jnp.ones((9, 7))).flops == 2 * 9 * 7 * 5


def test_an_outlook_prints_as_lines_that_are_aligned():
    its = trainer.Outlook(
        frozen=5 << 30, adapter=3 << 19, optimizer=1023, inputs=1 << 10, temporary=0, peak=9 << 30,
        flops=3 * 10**12, tokens=2_000,
    )  # fmt: skip
    *bytes_, flops, tokens = str(its).splitlines()
    assert bytes_ == [
        "frozen       5.00 GiB",
        "adapter      1.50 MiB",
        "optimizer      1023 B",
        "inputs       1.00 KiB",
        "temporary         0 B",
        "peak         9.00 GiB",
    ]
    assert (flops, tokens) == ("FLOPs      3 TFLOP, 1.5 GFLOP a token", "tokens     2,000")


# ------------------------------------------------------------------------------------------------
# What does not fit
# ------------------------------------------------------------------------------------------------


def test_an_allocation_that_fails_is_told_from_other_errors():
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jnp.zeros(1 << 46).block_until_ready()
    assert trainer.ran_out(raised.value)
    assert not trainer.ran_out(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert not trainer.ran_out(ValueError("RESOURCE_EXHAUSTED"))


def test_the_limit_is_the_devices_own_or_that_of_the_machine():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert trainer.memory_limit(Device({"bytes_limit": 77})) == 77
    assert trainer.memory_limit(Device(None)) is None
    assert 2**28 < trainer.memory_limit() < 2**50


def of_rows(remat, accumulate):
    """Not of a compiler: 12 rows, a number for each."""
    peak = 12 // accumulate * {"none": 100, "products": 40, "full": 10}[remat]
    return trainer.Outlook(
        frozen=0, adapter=0, optimizer=0, inputs=0, temporary=peak, peak=peak, flops=0
    )


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (480, ("products", 1)),
        (479, ("products", 2)),
        (239, ("products", 4)),
        (119, ("products", 12)),
        (39, ("full", 4)),
        (10, ("full", 12)),
        (9, None),
    ],
)
def test_the_first_settings_that_fit_change_least(limit, wanted):
    names = ("products", "full")
    assert trainer.fitting(of_rows, batch_size=12, remats=names, limit=limit) == wanted
    asked = []
    trainer.fitting(
        lambda *its: asked.append(its) or of_rows(*its),
        batch_size=12, accumulate=3, remats=["full"], limit=9,
    )  # fmt: skip
    assert asked == [("full", 3), ("full", 6), ("full", 12)]


def test_a_compiler_that_runs_out_says_no_and_any_other_error_is_raised():
    def refuses(error):
        def outlook_of(remat, accumulate):
            if accumulate == 1:
                raise jax.errors.JaxRuntimeError(error)
            return of_rows(remat, accumulate)

        return trainer.fitting(outlook_of, batch_size=12, remats=["full"], limit=1000)

    assert refuses("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm") == ("full", 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refuses("INTERNAL: something else")


def test_parts_of_a_batch_fit_where_the_whole_does_not():
    def outlook_of(_, accumulate):
        step, *shapes = parts(256, accumulate)
        return trainer.outlook(step, *shapes)

    limit = outlook_of("", 1).peak - 1
    _, accumulate = trainer.fitting(outlook_of, batch_size=256, remats=[""], limit=limit)
    assert accumulate == 2
