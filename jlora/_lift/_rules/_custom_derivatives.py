"""Functions with a derivative of their own: the body from factors, the derivative as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jlora._lift import _jax
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Decline, Weight


@rule(
    "custom_jvp_call",
    reads=("call_jaxpr", "num_consts"),
    carries=("jvp_jaxpr_fun", "symbolic_zeros"),
)
def custom_jvp_call(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Values from factors; the tangent of W, which the function's rule asks for, as a whole."""
    return walk.run.custom_jvp(_Function(walk, eqn, operands))


@rule(
    "custom_vjp_call",
    reads=("call_jaxpr", "num_consts"),
    carries=("fwd_jaxpr_thunk", "bwd", "out_trees", "symbolic_zeros"),
)
def custom_vjp_call(walk: Walk, eqn: Any, *operands: Any) -> list[Any]:
    """Values from factors; the gradient of W, which the function gives, becomes that of A and B."""
    return walk.run.custom_vjp(_Function(walk, eqn, operands))


class _Function:
    """An equation that calls such a function, on operands of which some are weights."""

    def __init__(self, walk: Walk, eqn: Any, operands: Sequence[Any]):
        if any(isinstance(value, Weight) and value.drops for value in operands):
            raise Decline("its own derivative knows nothing of dropout")
        self._closed_over = eqn.params["num_consts"]
        if any(isinstance(value, Weight) for value in operands[: self._closed_over]):
            raise Decline("a function with its own derivative has none for what it closes over")
        self._walk, self._eqn = walk.inside(eqn), eqn
        self.flat, self._structure = jax.tree.flatten(list(operands))

    def operands(self, flat: Sequence[Any]) -> list[Any]:
        return jax.tree.unflatten(self._structure, flat)

    def arrays(self, *flat: Any) -> list[Any]:
        """The operands as the model would have them."""
        values = self.operands(flat)
        return [value.merged() if isinstance(value, Weight) else value for value in values]

    def call(self, *operands: Any) -> list[Any]:
        """The equation itself, on arrays."""
        return _jax.bind(self._eqn, list(operands))

    def values(self, *flat: Any) -> list[Any]:
        """Its results from factors."""
        return self._plain(self._walk(self._eqn.params["call_jaxpr"], self.operands(flat)))

    def _plain(self, results: list[Any]) -> list[Any]:
        return self._walk.merged(
            results, self._eqn, "returned by a function with its own derivative"
        )

    def tangents(self, flat: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Results and tangents by the function's own rule."""
        shapes, tangents = jax.jvp(self.arrays, flat, tangents)
        real = [t for t in tangents if _is_real(t)]
        told: dict[str, Any] = {}

        def own(primals, real):
            rest = iter(real)
            filled = [next(rest) if _varies(p) else _nothing(p) for p in primals]
            results, tangents = jax.jvp(self.call, primals, filled)
            told["results"] = results
            return results, [t for t in tangents if _is_real(t)]

        jaxpr = jax.make_jaxpr(own)(*jax.eval_shape(lambda *both: both, shapes, real))
        results = self._plain(self._walk(jaxpr, [*self.operands(flat), *real]))
        count = len(told["results"])
        rest = iter(results[count:])
        results = results[:count]
        return results, [next(rest) if _varies(r) else _nothing(r) for r in results]

    def forward(
        self, flat: Sequence[Any], wanted: Sequence[bool]
    ) -> tuple[list[Any], Any, Callable[..., list[Any]]]:
        """Results, what the backward pass needs, and it: (needed, cotangents) -> those of ``flat``.

        A cotangent of ``flat`` is None where it is not ``wanted``.
        """
        marks = self.operands(wanted)
        asked = [at for at, mark in enumerate(marks) if any(jax.tree.leaves(mark))]
        if any(at < self._closed_over for at in asked):
            raise ValueError("a custom_vjp function has no gradient for what it closes over")
        shapes = jax.eval_shape(self.arrays, *flat)

        def own(*operands):
            def call(*given):
                filled = list(operands)
                for at, value in zip(asked, given, strict=True):
                    filled[at] = value
                return self.call(*filled)

            return jax.vjp(call, *(operands[at] for at in asked))

        jaxpr, (_, back) = jax.make_jaxpr(own, return_shape=True)(*shapes)
        results = self._walk(jaxpr, self.operands(flat))
        kept, structure = jax.tree.flatten(back)
        count = len(results) - len(kept)
        _, to_flat = jax.vjp(lambda *flat: [self.arrays(*flat)[at] for at in asked], *flat)

        def backward(saved, cotangents):
            saved, to_flat = saved
            cotangents = list(map(_instantiated, cotangents))
            real = [c for c in cotangents if _is_real(c)]

            def own(kept, real):
                rest = iter(real)
                filled = [next(rest) if _is_real(c) else c for c in cotangents]
                return jax.tree.unflatten(structure, kept)(filled)

            jaxpr = jax.make_jaxpr(own)(kept, jax.eval_shape(lambda real: real, real))
            given = to_flat(self._plain(self._walk(jaxpr, [*saved, *real])))
            return [c if want else None for c, want in zip(given, wanted, strict=True)]

        return self._plain(results[:count]), (results[count:], to_flat), backward


def _varies(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _is_real(tangent: Any) -> bool:
    """Whether a tangent or a cotangent is one: integers have none."""
    return tangent.dtype != jax.dtypes.float0


def _nothing(value: Any) -> Any:
    return np.zeros(value.shape, jax.dtypes.float0)


def _instantiated(cotangent: Any) -> Any:
    """A cotangent as an array, where JAX says by a symbol that it is zero."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if not _is_real(cotangent):
        return _nothing(cotangent)
    return jnp.zeros(cotangent.shape, jnp.dtype(cotangent.dtype))  # type: ignore
