"""A rule for a primitive, and a filter before A, by public names alone."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir
from laws import adapted, assert_close, check_law_1

import jlora
from jlora import extend
from jlora.extend import Factor


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


half_p = Primitive("half_of")
half_p.def_impl(lambda x: x / 2)
half_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(half_p, mlir.lower_fun(lambda x: x / 2, multiple_results=False))
jax.interpreters.ad.deflinear2(half_p, lambda ct, x: [half_p.bind(ct)])


def test_a_rule_takes_no_other_rules_place_unasked():
    with pytest.raises(ValueError, match="dot_general has a rule already: pass override=True"):
        extend.rule("dot_general")
    assert extend.rule("dot_general", override=True)  # nothing is registered before its function


def halved(p, x):
    return x @ half_p.bind(p["w"])


def test_a_rule_for_a_primitive_of_ones_own():
    frozen, lora = adapted({"w": normal(7, 11)})
    x = normal(5, 7)
    check_law_1(halved, frozen, lora, x, merged=1)
    assert "half_of" not in extend.primitives()

    @extend.rule("half_of")
    def half(walk, eqn, value):
        half = lambda f: Factor(f.array / 2, f.dims)  # noqa: E731
        moved = walk.move(eqn, value, extend.unmoved(value.ndim), lambda f: f)
        return [moved.map_terms(lambda t: dataclasses.replace(t, a=half(t.a)))]

    assert "half_of" in extend.primitives()
    check_law_1(halved, frozen, lora, x, factored=1)
    assert jlora.trace_axes(halved, {"w": frozen["w"]}, x) == {"w": jlora.Axes()}


@pytest.mark.parametrize("result", [lambda value: value, lambda value: None, lambda value: []])
def test_a_rule_that_gives_no_list_of_results_is_told_so(result):
    thirds_p = Primitive("thirds_of")
    thirds_p.def_abstract_eval(lambda x: x)
    frozen, lora = adapted({"w": normal(7, 11)})

    @extend.rule("thirds_of", override=True)
    def no_list(walk, eqn, value):
        return result(value)

    lifted = jlora.lift(lambda p, x: x @ thirds_p.bind(p["w"]))
    with pytest.raises(ValueError, match=r"the rule for thirds_of gave \w.*: expected a list of 1"):
        lifted(frozen, lora, normal(5, 7))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnlyPositive(extend.InputFilter):
    """Lets what is positive pass to A."""

    def __call__(self, x, dims):
        return jnp.maximum(x, 0)

    def moved(self, factor):
        return self

    def of_all_steps(self):
        return self


@extend.register("test-positive")
@dataclasses.dataclass(frozen=True)
class PositiveWeight(jlora.LoraWeight):
    kind: ClassVar = ""

    @classmethod
    def start(cls, leaf):
        node, frozen = super().start(leaf)
        return cls(**{f.name: getattr(node, f.name) for f in dataclasses.fields(node)}), frozen

    def input_filter(self, key):
        return OnlyPositive()


def test_a_filter_of_ones_own_stands_before_a_alone():
    frozen, lora = adapted({"w": normal(7, 11)}, method="test-positive")
    x, node = normal(5, 7), lora["w"]
    got = jlora.lift(lambda p, x: x @ p["w"], strict=True)(frozen, lora, x)
    want = x @ frozen["w"] + node.scaling * (jnp.maximum(x, 0) @ node.a) @ node.b
    assert_close(got, want)
