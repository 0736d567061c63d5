"""`lift` among JAX's other transformations: derivatives inside, adapters on adapters, callables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from laws import adapted, assert_close, check_law_1

import jlora

X = jax.random.normal(jax.random.key(0), (5, 7))
PARAMS = {
    "w": jax.random.normal(jax.random.key(1), (7, 11)),
    "v": jax.random.normal(jax.random.key(2), (11, 7)),
}


def net(p, x):
    return jnp.tanh(x @ p["w"] / 3) @ p["v"]


def loss(p, x):
    return (net(p, x) ** 2).mean()


def one_step(p, x):
    """The loss after a step of gradient descent on all weights."""
    grads = jax.grad(loss)(p, x)
    return loss(jax.tree.map(lambda w, g: w - 0.1 * g, p, grads), x)


def named(p, x):
    policy = jax.checkpoint_policies.save_only_these_names("hidden")
    hidden = lambda x: checkpoint_name(jnp.tanh(x @ p["w"]), "hidden") @ p["v"]  # noqa: E731
    return jax.checkpoint(hidden, policy=policy)(x)


def through_a_ref(p, x):
    total = jax.new_ref(jnp.zeros((5, 11)))
    total[...] += x @ p["w"]
    return total[...]


INSIDE = {
    "a gradient by inputs": lambda p, x: jax.grad(lambda x: loss(p, x))(x),
    "a gradient by weights": lambda p, x: jax.grad(loss)(p, x),
    "a step of gradient descent": one_step,
    "a hessian": lambda p, x: jax.hessian(lambda x: loss(p, x))(x[0]),
    "a directional derivative": lambda p, x: jax.jvp(lambda x: net(p, x), (x,), (x,)),
    "a linear map": lambda p, x: jax.linearize(lambda x: net(p, x), x)[1](x),
    "a map": lambda p, x: lax.map(lambda row: net(p, row), x),
    "an associative scan": lambda p, x: lax.associative_scan(lambda a, b: a + net(p, b), x),
    "a checkpoint that keeps names": named,
    "a mutable array": through_a_ref,
    "random numbers": lambda p, x: (
        net(p, x) * jax.random.bernoulli(jax.random.key(3), 0.5, x.shape)
    ),
    "an empty loop": lambda p, x: lax.scan(lambda c, _: (net(p, c), c), net(p, x), length=0),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_a_model_does_inside_stays_factored_and_right(name):
    check_law_1(INSIDE[name], *adapted(PARAMS), X, tolerance=1e-4)


def test_a_function_with_its_own_derivative_keeps_it_in_a_loop():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def scaled(by, x, w):
        return by * (x @ w)

    scaled.defvjp(
        lambda by, x, w: (scaled(by, x, w), (x, w)),
        lambda by, kept, g: (2 * g @ kept[1].T, 3 * kept[0].T @ g),  # on purpose not its own
    )

    def fn(p, x):
        return lax.scan(lambda c, _: (scaled(0.5, c, p["w"]) @ p["v"], None), x, length=2)[0]

    check_law_1(fn, *adapted(PARAMS), X, factored=2)


def test_an_adapter_on_an_adapter_adds_both():
    frozen, first = adapted(PARAMS)
    _, second = adapted(PARAMS, seed=9)
    inner = jlora.lift(net, strict=True)
    outer = jlora.lift(inner, strict=True)
    both = jlora.merge(jlora.merge(frozen, first), second)
    assert_close(outer(frozen, second, first, X), net(both, X), 1e-5)


def test_no_adapter_is_the_base():
    assert np.array_equal(jlora.lift(net, strict=True)(PARAMS, {}, X), net(PARAMS, X))


class Callable:
    def __call__(self, p, x):
        return net(p, x)

    def method(self, p, x):
        return net(p, x)


@pytest.mark.parametrize(
    "fn",
    [
        Callable(),
        Callable().method,
        functools.partial(lambda _, p, x: net(p, x), 0),
        jax.jit(net),
        jax.checkpoint(net),
    ],
    ids=["object", "method", "partial", "jitted", "checkpointed"],
)
def test_anything_callable_is_lifted(fn):
    frozen, lora = adapted(PARAMS)
    expected = net(jlora.merge(frozen, lora), X)
    lifted = jlora.lift(fn, strict=True)
    assert_close(lifted(frozen, lora, X), expected, 1e-5)
    assert_close(jax.jit(lifted)(frozen, lora, x=X), expected, 1e-5)


def test_a_run_of_training_steps_is_a_scan():
    frozen, lora = adapted(PARAMS)
    tx = jlora.optimizer(optax.adam(1e-2))
    lifted = jlora.lift(loss, strict=True)

    def step(carry, x):
        lora, state = carry
        value, grads = jax.value_and_grad(lifted, argnums=1)(frozen, lora, x)
        updates, state = tx.update(grads, state, lora)
        return (optax.apply_updates(lora, updates), state), value

    xs = jnp.stack([X] * 4)
    (scanned, _), losses = jax.jit(lambda c: lax.scan(step, c, xs))((lora, tx.init(lora)))
    carry = lora, tx.init(lora)
    for x in xs:
        carry, _ = step(carry, x)
    assert_close(scanned, carry[0], 1e-4)
    assert losses[-1] < losses[0]
