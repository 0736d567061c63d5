"""Random programs: a weight, moved about, then used; and law 1 on one of them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax
from laws import adapted, assert_close, example

import jlora

FOREIGN = [name for name in ("vera", "hira") if example(name)]
F32 = np.dtype("float32")


def numbers(*shape, like=None, seed=0):
    return (
        np.random.default_rng(seed)
        .uniform(0.5, 1.5, shape)
        .astype(F32 if like is None else like.dtype)
    )


# Movements: (draw, shape) -> function of the array, or None where the shape does not allow it.


def transpose(draw, shape):
    order = draw(st.permutations(range(len(shape))))
    return lambda w: jnp.transpose(w, order)


def merge_dims(draw, shape):
    if len(shape) < 2:
        return None
    at = draw(st.integers(0, len(shape) - 2))
    new = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    return lambda w: w.reshape(new)


def part_dim(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    factors = [n for n in (2, 3) if shape[at] % n == 0]
    if not factors:
        return None
    by = draw(st.sampled_from(factors))
    new = (*shape[:at], by, shape[at] // by, *shape[at + 1 :])
    return lambda w: w.reshape(new)


def regroup(draw, shape):
    """Usually across inputs and outputs."""
    order = draw(st.permutations(shape))
    return lambda w: w.reshape(order)


def new_dim(draw, shape):
    at = draw(st.integers(0, len(shape)))
    times = draw(st.sampled_from((1, 1, 3)))
    return lambda w: (
        jnp.repeat(w[None], times, 0).swapaxes(0, at)
        if at == 0
        else (jnp.broadcast_to(jnp.expand_dims(w, at), (*shape[:at], times, *shape[at:])))
    )


def cut(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, shape[at] - 1))
    stop = draw(st.integers(start + 1, shape[at]))
    step = draw(st.sampled_from((1, 1, 2)))
    return lambda w: lax.slice_in_dim(w, start, stop, step, at)


def cut_at_run_time(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    size = draw(st.integers(1, shape[at]))
    start = draw(st.integers(-1, shape[at]))
    return lambda w: lax.dynamic_slice_in_dim(w, jnp.int32(start), size, at)


def index(draw, shape):
    if len(shape) < 2:
        return None
    at = draw(st.integers(0, len(shape) - 1))
    k = draw(st.integers(-shape[at], shape[at] - 1))
    if draw(st.booleans()):
        return lambda w: lax.dynamic_index_in_dim(w, jnp.int32(k), at, keepdims=False)
    return lambda w: lax.index_in_dim(w, k, at, keepdims=False)


def take(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    mode = draw(st.sampled_from(("fill", "clip", "wrap")))
    ks = np.array(draw(st.lists(st.integers(-shape[at] - 1, shape[at]), min_size=1, max_size=4)))
    if draw(st.booleans()):
        ks = ks[:, None]
    return lambda w: jnp.take(w, ks, at, mode=mode, fill_value=0)


def index_by_map(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    ks = np.array(draw(st.lists(st.integers(0, shape[at] - 1), min_size=1, max_size=3)))
    return lambda w: jax.vmap(lambda k: lax.dynamic_slice_in_dim(w, k, 1, at))(ks)


def scale(draw, shape):
    kind = draw(st.sampled_from(("number", "one dim", "all dims", "divided")))
    if kind == "number":
        return lambda w: -w * 0.7
    dims = range(len(shape)) if kind == "all dims" else [draw(st.integers(0, len(shape) - 1))]
    sizes = [n if dim in dims else 1 for dim, n in enumerate(shape)]
    if kind == "divided":
        return lambda w: w / numbers(*sizes, like=w)
    return lambda w: w * numbers(*sizes, like=w)


def add(draw, shape):
    if draw(st.booleans()):
        return lambda w: w + numbers(*shape, like=w, seed=1)
    order = draw(st.permutations(range(len(shape))))
    if any(shape[a] != n for a, n in zip(order, shape, strict=True)):
        return None
    return lambda w: w - 2 * w.transpose(order)


def join(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    kind = draw(st.sampled_from(("itself", "numbers", "a part", "thrice")))
    sizes = [2 if dim == at else n for dim, n in enumerate(shape)]

    def fn(w):
        other = numbers(*sizes, like=w, seed=2)
        return jnp.concatenate(
            {
                "itself": [w, 2 * w],
                "numbers": [other, w],
                "a part": [lax.slice_in_dim(w, 0, 1, axis=at), other, w],
                "thrice": [w, jnp.flip(w, at), -w],
            }[kind],
            at,
        )

    return fn


def stack(draw, shape):
    at = draw(st.integers(0, len(shape)))
    others = draw(st.booleans())
    return lambda w: jnp.stack([w, numbers(*shape, like=w, seed=3) if others else 3 * w], at)


def piece(draw, shape):
    at = draw(st.integers(0, len(shape) - 1))
    if shape[at] < 2:
        return None
    where = draw(st.integers(1, shape[at] - 1))
    which = draw(st.integers(0, 1))
    return lambda w: jnp.split(w, [where], at)[which]


def sum_dim(draw, shape):
    if len(shape) < 2:
        return None
    at = draw(st.integers(0, len(shape) - 1))
    keep = draw(st.booleans())
    return lambda w: w.sum(at, keepdims=keep)


def choose(draw, shape):
    other = draw(st.booleans())
    return lambda w: jnp.where(w.sum() < 0 if other else w.size > 0, w, 0.5 * w)


def bend(draw, shape):
    """What is not linear."""
    fn = draw(st.sampled_from((jnp.tanh, jnp.square, jax.nn.softmax, jnp.cumsum)))
    return lambda w: fn(w).reshape(shape)


MOVEMENTS = [
    transpose, merge_dims, part_dim, regroup, new_dim, cut, cut_at_run_time, index, take,
    index_by_map, scale, add, join, stack, piece, sum_dim, choose, bend,
]  # fmt: skip


def product(draw, shape):
    """With an array that shares a random part of the dimensions, contracted or not."""
    letters = "abcdefghijkl"[: len(shape)]
    shared = [letter for letter in letters if draw(st.booleans())]
    kept = [letter for letter in letters if letter not in shared or draw(st.integers(0, 3)) == 0]
    out = "".join(draw(st.permutations([*kept, "z"])))
    x_letters = "".join(draw(st.permutations([*shared, "z"])))
    sizes = {**dict(zip(letters, shape, strict=True)), "z": 3}
    weight_first = draw(st.booleans())

    def fn(w):
        x = numbers(*(sizes[letter] for letter in x_letters), like=w, seed=4) - 1
        if weight_first:
            return jnp.einsum(f"{letters},{x_letters}->{out}", w, x)
        return jnp.einsum(f"{x_letters},{letters}->{out}", x, w)

    return fn


# Where the movements and the product happen.


def plain(draw, fn):
    return fn


def jitted(draw, fn):
    return jax.jit(fn)


def rematerialised(draw, fn):
    return jax.checkpoint(fn)


def scanned(draw, fn):
    """Over the first dimension."""
    reverse = draw(st.booleans())
    return lambda w: lax.scan(
        lambda c, row: (c + 1, fn(row) * c), w.dtype.type(1), w, reverse=reverse
    )


def looped(draw, fn):
    return lambda w: lax.fori_loop(0, 2, lambda k, c: c + k + jnp.sin(fn(w)).sum(), w.dtype.type(0))


def carried(draw, fn):
    return lambda w: lax.scan(
        lambda c, _: ((fn(c[1]).mean(), c[1]), c[0]), (w.dtype.type(0), w), length=2
    )


def mapped(draw, fn):
    return lambda w: jax.vmap(fn)(w)


def branched(draw, fn):
    which = draw(st.integers(0, 2))
    return lambda w: lax.switch(which, [fn, lambda w: -fn(w), lambda w: fn(w * 2)], w)


OVER_ROWS = (scanned, mapped)
PLACES = [plain, jitted, rematerialised, scanned, looped, carried, mapped, branched]


@st.composite
def programs(draw):
    """(function of a tree with one weight, its shape, its axes, the method, what was drawn)."""
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.lists(st.sampled_from((2, 3, 4, 6)), min_size=ndim, max_size=ndim)))
    others = draw(st.lists(st.sampled_from(ROLES), min_size=ndim - 2, max_size=ndim - 2))
    roles = draw(st.permutations(["in", "out", *others]))
    axes = jlora.Axes(
        *(tuple(dim for dim, role in enumerate(roles) if role == each) for each in ROLES)
    )
    place = draw(st.sampled_from(PLACES))
    inner = shape[1:] if place in OVER_ROWS else shape
    steps, names = [], [place.__name__]
    for _ in range(draw(st.integers(1, 5))):
        movement = draw(st.sampled_from(MOVEMENTS))
        step = movement(draw, inner)
        if step is None:
            continue
        steps.append(step)
        names.append(movement.__name__)
        inner = jax.eval_shape(step, jax.ShapeDtypeStruct(inner, "float32")).shape
        if not inner or len(inner) > 6 or np.prod(inner) > 2000:
            break
    if inner and draw(st.sampled_from((True, True, True, True, False))):
        steps.append(product(draw, inner))
        names.append("product")

    def moved(w):
        for step in steps:
            w = step(w)
        return w

    placed = place(draw, moved)
    method = draw(st.sampled_from(("lora", "lora", "dora")))
    return (lambda p: placed(p["w"])), shape, axes, method, [method, *names]


ROLES = ("in", "out", "stack")


def values_and_gradients(fn, lora):
    """Of a function of the adapter, with a cotangent that tells all entries apart."""
    value, pull = jax.vjp(fn, lora)
    entries = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape), value)
    return value, pull(jax.tree.map(lambda e, v: e.astype(v.dtype), entries, value))


def run(fn, weight, axes, method, *bases):
    """The merged function on each of the bases, then the lifted one on the last."""
    _, lora = adapted({"w": weight}, {"w": axes}, rank=2, method=method)

    @jax.jit
    def all_of_them(lora):
        merged = [
            values_and_gradients(lambda lora, w=w: fn(jlora.merge({"w": w}, lora)), lora)
            for w in bases
        ]
        lifted = jlora.lift(fn)
        return *merged, values_and_gradients(lambda lora: lifted({"w": bases[-1]}, lora), lora)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jlora.MaterialisedWarning)
        return all_of_them(lora)


def check_program(program, method=None):
    """A lifted program is the merged one in values and gradients."""
    fn, shape, axes, drawn, _ = program
    weight = numbers(*shape, seed=5) - 1
    merged, lifted = run(fn, weight, axes, method or drawn, weight)
    assert_close(lifted, merged, 1e-4)


def check_in_bfloat16(program):
    """It is as near to the exact one as the merged is.

    Neither is exact, nor need they round alike: float32 judges both.
    """
    fn, shape, axes, method, _ = program
    weight = (numbers(*shape, seed=5) - 1).astype(jnp.bfloat16)
    results = run(fn, weight, axes, method, weight.astype("float32"), weight)
    for exact, merged, lifted in zip(*map(jax.tree.leaves, results), strict=True):
        assert (lifted.dtype, lifted.shape) == (merged.dtype, merged.shape)
        exact, merged, lifted = (np.asarray(v, "float64") for v in (exact, merged, lifted))
        size = max(np.abs(np.nan_to_num(exact)).max(initial=0), 1e-3)
        # differences are of the largest entry; a rounding to bfloat16 is up to 2**-9 of a value
        off_merged = np.nan_to_num(np.abs(merged - exact)).max(initial=0) / size
        np.testing.assert_allclose(lifted, exact, rtol=0, atol=size * (3 * off_merged + 2**-5))
