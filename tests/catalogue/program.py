"""One use with one operand as the weight: as it is, merged and lifted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from readings import Reading

import jlora


class Program:
    """``fn(params, *others)``, with the operand at a place as the only leaf of ``params``."""

    def __init__(self, harness: Any, arguments: list[Any], at: int):
        self.harness, self.arguments, self.at = harness, arguments, at
        self.weight = jnp.asarray(arguments[at])
        self.others = [*arguments[:at], *arguments[at + 1 :]]

    def fn(self, params: dict[str, Any], *others: Any) -> Any:
        """The use as a function of a tree of parameters."""
        weight = params["w"].reshape(self.weight.shape)  # where a vector was read as a matrix
        return self.harness.dyn_fun(*others[: self.at], weight, *others[self.at :])

    def of_weight(self, weight: Any, *others: Any) -> Any:
        """The use as a function of the operand."""
        return self.fn({"w": weight}, *others)

    def value(self, weight: Any) -> Any:
        """Its results for this weight, compiled; raises what JAX raises."""
        return self._compiled(weight, *self.others)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.of_weight)

    @functools.cached_property
    def shapes(self) -> list[Any]:
        """Of its results; raises what JAX raises."""
        return jax.tree.leaves(jax.eval_shape(self.of_weight, self.weight, *self.others))

    @property
    def rounds(self) -> list[float]:
        """The steps to which its `lax.reduce_precision` rounds, relative to a value."""
        jaxpr = jax.make_jaxpr(self.of_weight)(self.weight, *self.others)
        return [
            2.0 ** -eqn.params["mantissa_bits"]
            for eqn in jaxpr.eqns
            if eqn.primitive.name == "reduce_precision"
        ]

    @functools.cached_property
    def no_gradient(self) -> str | None:
        """Why JAX has no gradient of it, or None."""

        def gradient(weight, others):
            return with_gradient(lambda weight: self.of_weight(weight, *others), weight)

        try:
            jax.eval_shape(gradient, self.weight, self.others)
        except Exception as error:
            return said(error)
        return None

    def in_float32(self) -> Program | None:
        """The same with float32 in the place of narrower types, where JAX can run that."""
        wide = [a.astype("float32") if narrow(a.dtype) else a for a in self.arguments]
        program = Program(self.harness, wide, self.at)
        try:
            new = program.shapes
        except Exception:
            return None
        kinds = [
            [(leaf.shape, inexact(leaf.dtype)) for leaf in each] for each in (self.shapes, new)
        ]
        return program if kinds[0] == kinds[1] else None

    def uses(self, reading: Reading, lora: Any) -> tuple[jlora.Use, ...]:
        """What `jlora.explain` tells of them."""
        frozen = {"w": self.weight.reshape(reading.shape)}
        return jlora.explain(self.fn, frozen, lora, *self.others).uses


Results = tuple[Any, Any]  # a value and a gradient


def compiled(
    program: Program, exact: Program | None, reading: Reading, lora: Any
) -> Callable[..., dict[str, Results]]:
    """The merged program, the lifted and in float32 the exact one, of the operand's entries.

    Each gives values and gradients with respect to the adapter, or values alone where JAX has no
    gradient. A second argument is what comes back to NaN: see `with_gradient`.
    """

    @jax.jit
    def all_of_them(weight, to_nan, lora, others, exact_others):
        def run(fn):
            return (fn(lora), {}) if program.no_gradient else with_gradient(fn, lora, to_nan)

        def merged(program, weight, others):
            frozen = {"w": weight.reshape(reading.shape)}
            return run(lambda lora: program.fn(jlora.merge(frozen, lora), *others))

        frozen = {"w": weight.reshape(reading.shape)}
        lifted = jlora.lift(program.fn)
        results = {
            "merged": merged(program, weight, others),
            "lifted": run(lambda lora: lifted(frozen, lora, *others)),
        }
        if exact is not None:
            results["exact"] = merged(exact, weight.astype("float32"), exact_others)
        return results

    def run(weight, to_nan=1.0):
        return all_of_them(weight, to_nan, lora, program.others, exact and exact.others)

    return run


def with_gradient(fn: Callable[[Any], Any], at: Any, to_nan: Any = 1.0) -> Results:
    """The value there, and the gradient for a cotangent that tells its entries apart.

    Where the value is NaN the cotangent is multiplied by ``to_nan``: a loss sends NaN back there.
    """
    value, pull = jax.vjp(fn, at)
    return value, pull(jax.tree.map(lambda leaf: _cotangent(leaf, to_nan), value))[0]


def _cotangent(value: Any, to_nan: Any) -> Any:
    if not inexact(value.dtype):
        return np.zeros(value.shape, jax.dtypes.float0)
    entries = jnp.cos(jnp.arange(value.size)).reshape(value.shape)
    return (entries * jnp.where(jnp.isnan(value), to_nan, 1.0)).astype(value.dtype)


def inexact(dtype: Any) -> bool:
    """Whether it is a float or complex type."""
    return jax.dtypes.issubdtype(dtype, np.inexact)


def narrow(dtype: Any) -> bool:
    """Whether it is a float type with less than float32's precision."""
    return jax.dtypes.issubdtype(dtype, np.floating) and jnp.finfo(dtype).nmant < 23


def said(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:110]
