"""Products that are not formed give what the formed ones give, in numpy's float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jlora._lowrank import squared_sums
from jlora.extend import RANK, Factor, Factored, Product

SHAPE = (2, 3, 5)
SIZES = {**dict(enumerate(SHAPE)), RANK: 4}
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def _in_64_bits():
    with jax.enable_x64(True):
        yield


def factor(dims, dtype="float64"):
    return Factor(jnp.asarray(DRAW.normal(size=[SIZES[dim] for dim in dims]), dtype), tuple(dims))


def formed(product):
    """The delta, entry by entry as the docstring of Product has it."""
    names = dict(zip([*range(3), RANK], "xyzr", strict=True))
    parts, operands = [], []
    for each in (product.a, product.b, product.scaling, product.gain):
        if each is not None:
            parts.append("".join(names[dim] for dim in each.dims))
            operands.append(np.asarray(each.array, "float64"))
    ones = [np.ones(size) for size in SHAPE]
    return np.einsum(",".join([*parts, "x", "y", "z"]) + "->xyz", *operands, *ones)


@st.composite
def products(draw):
    """A and B over any dimensions of the weight, each in one of them or in both; the rank in both.

    A scaling over what B has, a gain over what A or B has.
    """
    both = [draw(st.sampled_from(["a", "b", "both", "none"])) for _ in SHAPE]
    a = [RANK, *(dim for dim, where in enumerate(both) if where in ("a", "both"))]
    b = [RANK, *(dim for dim, where in enumerate(both) if where in ("b", "both"))]
    a, b = draw(st.permutations(a)), draw(st.permutations(b))

    def some(dims):
        return draw(st.none() | st.sets(st.sampled_from(sorted(dims))).map(sorted))

    scaling = some(b)
    gain = some({*draw(st.sampled_from([a, b]))} - {RANK} or {0})
    gain = gain if gain is None or {*gain} <= {*a} or {*gain} <= {*b} else None
    return Product(
        factor(a),
        factor(b),
        None if scaling is None else factor(scaling),
        None if gain is None else factor(gain),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(products(), min_size=1, max_size=2), st.data())
def test_deltas_and_sums_of_squares_are_those_of_the_formed_array(several, data):
    weight = factor((0, 1, 2)).array
    total = np.asarray(weight) + sum(map(formed, several))
    np.testing.assert_allclose(Factored(tuple(several)).merged(weight), total, rtol=1e-9, atol=1e-9)
    for product in several:
        alone = product.two_factors()
        assert alone.gain is None
        np.testing.assert_allclose(formed(alone), formed(product), rtol=1e-9, atol=1e-9)
    over = sorted(data.draw(st.sets(st.sampled_from(range(3)), min_size=1, max_size=2)))
    sums = squared_sums(weight, several, over)
    if sums is not None:
        want = np.square(total).sum(axis=tuple(over))
        np.testing.assert_allclose(sums, want, rtol=1e-8, atol=1e-8)


def test_sums_of_squares_are_not_formed_where_both_factors_have_the_dimension():
    both = Product(factor((0, 1, RANK)), factor((RANK, 1, 2)))
    weight = factor((0, 1, 2)).array
    assert squared_sums(weight, [both], [1]) is None
    assert squared_sums(weight, [both], [0]) is not None
    assert squared_sums(weight, [both], [2]) is not None
    assert squared_sums(weight, [both], [0, 2]) is None  # neither has all of them alone


@pytest.mark.parametrize("wide", ["weight", "a", "b", "gain"])
def test_one_wide_part_makes_the_sum_wide(wide):
    """Thirds of float64 keep their digits beside whole numbers of float32, whichever they are."""

    def part(name, dims):
        numbers = jnp.round(4 * factor(dims).array)
        its = numbers / 3 if name == wide else numbers.astype("float32")
        return Factor(its, dims)

    weight, gain = part("weight", (0, 1, 2)).array, part("gain", (2,))
    product = Product(part("a", (0, RANK)), part("b", (RANK, 1, 2)))
    total = np.asarray(weight, "float64") + formed(product)
    got = Factored((product,), gain).merged(weight.astype("float64"))
    # Entries near zero are differences of larger ones: float32 would be off by some 1e-6.
    want = np.asarray(gain.array, "float64") * total
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert Factored((product,), gain).merged(weight).dtype == weight.dtype
    assert product.delta(3).dtype == ("float64" if wide in ("a", "b") else "float32")


def test_every_gain_finds_its_factor():
    for dims in itertools.chain.from_iterable(itertools.combinations((0, 1, 2), n) for n in (1, 2)):
        for a, b in (((0, RANK), (RANK, 1, 2)), ((0, 1, RANK), (RANK, 2))):
            if not ({*dims} <= {*a} or {*dims} <= {*b}):
                continue
            product = Product(factor(a), factor(b), gain=factor(dims))
            alone = product.two_factors()
            changed = [n for n in "ab" if getattr(alone, n) is not getattr(product, n)]
            assert changed == (["a"] if {*dims} <= {*a} else ["b"])
            np.testing.assert_allclose(formed(alone), formed(product), rtol=1e-9, atol=1e-9)


def test_the_factor_that_takes_a_gain_keeps_its_dtype():
    product = Product(factor((0, RANK), "bfloat16"), factor((RANK, 1)), gain=factor((0,)))
    assert product.two_factors().a.array.dtype == "bfloat16"
