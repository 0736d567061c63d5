"""Law 1 on JAX's own catalogue of uses of its primitives: a tenth of it, always the same.

JLORA_CATALOGUE=all runs the whole; `python tests/catalogue` prints what became of each weight.
"""

import dataclasses
import os

import check
import harnesses
import jax
import jax.numpy as jnp
import linearity
import numpy as np
import pytest
import tables
from program import Program

import jlora

SHARE = 1.0 if os.environ.get("JLORA_CATALOGUE") == "all" else 0.1
CHUNKS = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_lifted_use_is_the_merged_one_and_is_factored_where_it_is_linear(chunk):
    chosen = [h for h in harnesses.chosen(SHARE) if harnesses.number(h.fullname) % CHUNKS == chunk]
    outcomes = [outcome for harness in chosen for outcome in check.check(harness)]
    jax.clear_caches()  # some thousand programs
    found = [each for each in outcomes if isinstance(each, check.Checked)]
    assert found
    wrong = [*tables.failures(found), *tables.without_reason(found)]
    assert not wrong, "\n".join(wrong)


@dataclasses.dataclass
class Harness:
    """What the checks need of one of JAX's."""

    dyn_fun: object
    fullname: str = "a function"


def program(fn, *arguments, dtype="float32"):
    return Program(Harness(fn), [np.asarray(each, dtype) for each in arguments], 0)


WEIGHT = np.random.default_rng(0).standard_normal((5, 7))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_adapter_of_twice_the_scaling_is_found(dtype, monkeypatch):
    lift = jlora.lift

    def wrong(fn):
        def lifted(frozen, lora, *others):
            node = lora["w"]
            return lift(fn)(
                frozen, {"w": dataclasses.replace(node, scaling=2 * node.scaling)}, *others
            )

        return lifted

    monkeypatch.setattr(jlora, "lift", wrong)
    right = program(lambda w, x: x @ w, WEIGHT, np.ones((3, 5)), dtype=dtype)
    assert all(each.failures for each in check.check_operand(right))


KINDS = {
    "linear": lambda w: w[::-1].sum(0),
    "linear, and a constant": lambda w: w.at[0].set(3.0),
    None: jnp.tanh,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_linear_is_told_by_numbers(kind):
    assert linearity.linearity(program(KINDS[kind], WEIGHT), 0.0) == kind


@pytest.mark.parametrize("fn", [jnp.abs, jnp.sign, jnp.argmax, lambda w: jnp.minimum(w, 9.0)])
def test_what_is_linear_in_a_part_of_all_weights_is_not(fn):
    assert linearity.linearity(program(fn, WEIGHT), 0.0) is None
