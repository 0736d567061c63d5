"""Running equations for real: on arrays, or on tracers of the transformation around."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora._lift import _jax
from jlora._lift._base import Base
from jlora._lift._decline import Decline
from jlora._lift._movement import Movement
from jlora._lift._operands import origins, renamed
from jlora._lift._term import Term
from jlora._lift._walk import Walk
from jlora._lift._weight import Weight
from jlora._lowrank import Factor, along, squared_sums


@dataclasses.dataclass(frozen=True)
class Use:
    """One meeting of an adapted leaf with an operation that computes with it.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> def model(params, x):
        ...     return x @ params["kernel"]
        >>> [use] = jlora.explain(model, frozen, lora, jnp.ones((3, 7))).uses
        >>> use.path, use.operation, use.factored, use.base_flops  # 2 * 3 * 7 * 5
        ('kernel', 'dot_general', True, 210)
    """

    path: str
    operation: str  # the primitive's name
    source: str  # file:line (function)
    factored: bool  # the merged weight was not formed
    why: str
    times: int  # executions a call: the lengths of the scans around it; a while counts once
    base_flops: int = 0  # of the operation with W, once
    adapter_flops: int = 0  # of what the adapter adds, once
    adapter_bytes: int = 0  # read and written for it, once
    # the method says so: it has no factored form, or one that costs more
    formed: bool = False
    where: tuple[int, ...] = dataclasses.field(default=(), repr=False)  # equations, outermost first

    @property
    def merged(self) -> bool:
        """Whether the merged weight was formed because jlora knew nothing better."""
        return not self.factored and not self.formed


class Compute:
    """Computes, and tells ``on_use`` what each weight met."""

    def __init__(self, on_use: Callable[[Use], object], *, share_jits: bool = True):
        self._on_use = on_use
        self._share_jits = share_jits  # one trace for equal calls; off where each use is reported
        self._jits: dict[Any, Any] = {}

    # equations

    site = staticmethod(_jax.site)
    bind = staticmethod(_jax.bind)

    def move(
        self,
        walk: Walk,
        eqn: Any,
        operands: list[Any],
        movement: Movement,
        factor: Callable[[Factor], Factor],
    ) -> Any:
        """W after a movement; ``operands`` are W and the equation's others."""
        if isinstance(operands[0], Base):
            try:
                return operands[0].move(movement, factor)
            except Decline as verdict:
                operands = self._decoded(walk, eqn, operands, str(verdict))
        return _jax.bind(eqn, operands)[0]

    def place(self, walk: Walk, eqn: Any, values: list[Any]) -> list[Any]:
        """The same values somewhere else, or by a name."""
        if all(isinstance(value, Base) for value in values):
            return values
        return _jax.bind(eqn, self._decoded(walk, eqn, values, "it is placed beside others"))

    def parts(self, walk: Walk, eqn: Any, w: Any, movement: Movement) -> list[Any]:
        """The parts of W, side by side along one dimension."""
        return _jax.bind(eqn, self._decoded(walk, eqn, [w], "it is taken apart"))

    def join(
        self,
        walk: Walk,
        eqn: Any,
        operands: list[Any],
        movements: Sequence[Movement],
        varies: frozenset[int] | None,
    ) -> Any:
        """What an equation makes of several bases, or of one and of arrays.

        ``varies`` are the dimensions along which a base is multiplied; None where it is not.
        """
        return _jax.bind(eqn, self._decoded(walk, eqn, operands, "it meets other arrays"))[0]

    def rows(
        self, walk: Walk, eqn: Any, base: Base, dim: int, choose: Callable[[Any, int], Any]
    ) -> Any:
        """The plain array of places along a dimension: ``choose(array, axis)`` of each array."""
        try:
            return base.rows(dim, choose)
        except Decline as verdict:
            return choose(self._decoded(walk, eqn, [base], str(verdict))[0], dim)

    def _decoded(self, walk: Walk, eqn: Any, operands: list[Any], why: str) -> list[Any]:
        """The operands with the plain array of every frozen leaf that is none, each told."""
        for base in operands:
            if isinstance(base, Base):
                self._tell(walk, eqn, {base.origin: [1.0, 0, 0]}, f"decoded: {why}", 0, "formed")
        return [base.plain() if isinstance(base, Base) else base for base in operands]

    def one_of_two(self, walk: Walk, eqn: Any, lhs: Weight, rhs: Weight) -> tuple[Any, Any]:
        """Two weights that meet in a product: the smaller one is merged."""
        small = min(lhs, rhs, key=lambda value: value.size)
        merged = self.merge(walk, small, eqn, "the other operand is adapted too")
        return (merged, rhs) if small is lhs else (lhs, merged)

    def square(self, array: Any) -> Any:
        return jnp.square(array)

    def sum_of_squares(self, walk: Walk, eqn: Any, value: Weight, over: Sequence[int]) -> Any:
        """The sum of a weight's squares over some dimensions, without forming it."""
        plain = value.form is None and not value.rows and not isinstance(value.w, Base)
        if not plain or any(term.present for term in value.terms):
            raise Decline("it is no plain weight")
        value = value.filled(range(value.ndim))
        gain = value.gain
        if gain is not None and set(over) & set(gain.dims):
            raise Decline("the weight's magnitudes vary over what is summed")
        sums = squared_sums(value.base, value.terms, over)
        if sums is None:
            raise Decline("a sum over inputs and outputs")
        if gain is not None:
            kept = [dim for dim in range(value.ndim) if dim not in over]
            sums = sums * jnp.square(along(gain, kept))
        flops = [(2 * value.size * term.rank, 0) for term in value.terms]
        self.report(walk, value, eqn, "|W|² + 2 <W, A B> + |A B|²", 2 * value.size, flops)
        [out] = eqn.outvars
        return sums.astype(out.aval.dtype)

    # what is told

    def contracts(self, value: Weight, contracted: Any, kept: Any) -> None:
        """Nothing: how a product uses each dimension is asked by `Look` alone."""

    def merge(self, walk: Walk, value: Weight, eqn: Any, why: str) -> Any:
        """The merged array; chosen or summed rows count as factored."""
        if value.rows:
            why = "the chosen or summed rows of W, and those of A times B"
        size = math.prod(_jax.counted(value.shape))
        costs = [(2 * size * t.rank, size * value.dtype.itemsize) for t in value.terms]
        how = "factored" if value.rows else "merged"
        if not value.terms:  # a frozen leaf that is no array
            how, why = "formed", f"decoded: {why}"
        self.report(walk, value, eqn, why, 0, costs, how=how)
        return value.merged()

    def report(
        self,
        walk: Walk,
        value: Weight,
        eqn: Any,
        why: str,
        base_flops: int,
        costs: Sequence[tuple[int, int]],
        *,
        how: str = "factored",
    ) -> None:
        """Tells of each leaf in a value that it met this equation.

        ``costs`` are the FLOPs and bytes of each term.
        """
        shares: dict[str, list[float]] = {}
        for term, (flops, moved) in zip(value.terms, costs, strict=True):
            for origin in term.origins:
                share = shares.setdefault(str(origin), [0.0, 0.0, 0.0])
                share[0] = max(share[0], _part(term, value.shape) / len(term.origins))
                share[1] += flops / len(term.origins)
                share[2] += moved / len(term.origins)
        if isinstance(value.w, Base):
            shares.setdefault(value.w.origin, [0.0, 0.0, 0.0])[0] = 1.0
        self._tell(walk, eqn, shares, why, base_flops, how)

    def _tell(
        self,
        walk: Walk,
        eqn: Any,
        shares: dict[str, list[float]],
        why: str,
        base_flops: int,
        how: str,
    ) -> None:
        """Tells of leaves; each one's share of the base product, its FLOPs and its bytes."""
        whole = max(sum(share[0] for share in shares.values()), 1.0)
        asked = walk.asked if walk.asked is not None else eqn
        for path, (part, flops, moved) in shares.items():
            self._on_use(
                Use(
                    path=path,
                    operation=eqn.primitive.name if eqn is not None else "return",
                    source=_jax.source(asked) if asked is not None else "the function's result",
                    factored=how == "factored",
                    formed=how == "formed",
                    why=why,
                    times=walk.times,
                    base_flops=round(base_flops * part / whole),
                    adapter_flops=round(flops),
                    adapter_bytes=round(moved),
                    where=(*map(id, walk.calls), id(eqn)),
                )
            )

    # control flow

    def jit(self, eqn: Any, body: Callable[..., list[Any]], operands: Sequence[Any]) -> list[Any]:
        """A call of a nested jit, which keeps its name; equal calls are traced once."""
        if not self._share_jits:
            return body(*operands)
        # A trace serves other leaves too: it knows them by their places, and what it tells is told
        # again at each call, with the names that stand there.
        leaves = list(dict.fromkeys(name for value in operands for name in origins(value)))
        places = {leaf: str(place) for place, leaf in enumerate(leaves)}

        def told(*operands):
            uses: list[Use] = []
            tell, self._on_use = self._on_use, uses.append
            try:
                return body(*operands), _Told(uses)
            finally:
                self._on_use = tell

        told.__name__ = told.__qualname__ = name = eqn.params["name"]
        # Equal calls have one jaxpr: with one jitted function for it, JAX's own cache knows them.
        which = tuple(tuple(places[leaf] for leaf in origins(value)) for value in operands)
        called = self._jits.setdefault((id(eqn.params["jaxpr"]), name, which), jax.jit(told))
        results, uses = called(*(renamed(value, places) for value in operands))
        names = {place: leaf for leaf, place in places.items()}
        for use in uses:
            self._on_use(dataclasses.replace(use, path=names[use.path]))
        return [renamed(value, names) for value in results]

    def checkpoint(self, body: Callable[..., Any], operands: Sequence[Any], **options: Any) -> Any:
        return jax.checkpoint(body, **options)(*operands)

    scan = staticmethod(lax.scan)
    while_loop = staticmethod(lax.while_loop)

    def shapes(self, body: Callable[..., list[Any]], operands: Sequence[Any]) -> list[Any]:
        """What a branch gives out, without computing it."""
        return jax.eval_shape(body, *operands)

    def switch(
        self,
        index: Any,
        branches: Sequence[Callable[..., Any]],
        platforms: Any,
        operands: Sequence[Any],
    ) -> list[Any]:
        """One of several branches, by an index or by the platform that the program runs on."""
        if platforms is None:
            return lax.switch(index, branches, *operands)
        named = {
            name: branch
            for branch, names in zip(branches, platforms, strict=True)
            for name in names or ()
        }
        default = [branch for branch, names in zip(branches, platforms, strict=True) if not names]
        return lax.platform_dependent(*operands, default=(default or [None])[0], **named)

    def shard_map(
        self,
        body: Callable[..., Any],
        operands: Sequence[Any],
        specs: Callable[[], Any],
        **options: Any,
    ) -> Any:
        return jax.shard_map(body, in_specs=specs(), **options)(*operands)

    constrain = staticmethod(lax.with_sharding_constraint)

    def custom_jvp(self, function: Any) -> list[Any]:
        """A function that has its own rule for tangents (`_rules._custom_derivatives`)."""
        values = jax.custom_jvp(function.values)
        values.defjvp(function.tangents)
        return values(*function.flat)

    def custom_vjp(self, function: Any) -> list[Any]:
        """A function that has its own rule for gradients."""
        values = jax.custom_vjp(function.values)
        backward: list[Callable[..., list[Any]]] = []

        def forward(*flat):
            results, saved, back = function.forward(flat)
            backward[:] = [back]
            return results, saved

        values.defvjp(forward, lambda *told: tuple(backward[0](*told)))
        return values(*function.flat_refusing)


@jax.tree_util.register_static
class _Told(tuple):
    """The uses that a trace met, as static data of its result."""


def _part(term: Term, shape: tuple[int, ...]) -> float:
    """The share of a weight that a term covers."""
    part = 1.0
    for dim, _, size in term.window:
        part *= size / max(shape[dim], 1)
    return part
