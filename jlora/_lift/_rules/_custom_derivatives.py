"""Functions with a derivative of their own: the body from factors, the derivative as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._walk import Walk, rule
from jlora._lift._weight import Weight


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

    @property
    def flat_refusing(self) -> list[Any]:
        """The same arrays, where those that are closed over refuse to be differentiated."""
        closed_over = self._closed_over  # plain arrays, one leaf each
        return [*map(_without_gradient, self.flat[:closed_over]), *self.flat[closed_over:]]

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

    def forward(self, flat: Sequence[Any]) -> tuple[list[Any], Any, Callable[..., list[Any]]]:
        """Results, what the backward pass needs, and it: (needed, cotangents) -> those of ``flat``.

        Cotangents are those of everything that can have one, whatever is differentiated: JAX keeps
        one structure of what is needed for all gradients of a call, and under jit those that
        nothing reads are not computed.
        """
        shapes = jax.eval_shape(self.arrays, *flat)
        asked = [
            at for at, shape in enumerate(shapes) if at >= self._closed_over and _varies(shape)
        ]

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
            real = [c for c in cotangents if _is_real(c)]

            def own(kept, real):
                rest = iter(real)
                filled = [next(rest) if _is_real(c) else c for c in cotangents]
                return jax.tree.unflatten(structure, kept)(filled)

            jaxpr = jax.make_jaxpr(own)(kept, jax.eval_shape(lambda real: real, real))
            given = to_flat(self._plain(self._walk(jaxpr, [*saved, *real])))
            return [c if _is_real(c) else None for c in given]

        return self._plain(results[:count]), (results[count:], to_flat), backward


def _varies(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _is_real(tangent: Any) -> bool:
    """Whether a tangent or a cotangent is one: integers have none."""
    return tangent.dtype != jax.dtypes.float0


def _nothing(value: Any) -> Any:
    return np.zeros(value.shape, jax.dtypes.float0)


@jax.custom_jvp
def _without_gradient(value: Any) -> Any:
    """The value, of which a function with a gradient of its own has none."""
    return value


def _refused(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    if not isinstance(tangents[0], SymbolicZero):
        raise ValueError("a custom_vjp function has no gradient for what it closes over")
    return primals[0], tangents[0]


_without_gradient.defjvp(_refused, symbolic_zeros=True)
