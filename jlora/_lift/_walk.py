"""The one walk over a jaxpr in which some values stand for weights.

The walk knows nothing of low rank: an equation that no weight touches runs as it was; one that a
weight touches goes to the rule registered for its primitive; where there is none, or the rule
declines, it gets the merged weight. So the worst case is slower, never different.

What running means is said by its runner: `_compute` runs equations, `_look` only looks at them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from jlora import _placement
from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._movement import Movement
from jlora._lift._operands import fold_in
from jlora._lift._sums import ProductSum, Squares, added_up
from jlora._lift._weight import Weight
from jlora._lowrank import Factor


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a primitive acts on weights, and the parameters that its author knew of."""

    apply: Callable[..., list[Any]]
    reads: frozenset[str]
    carries: frozenset[str]

    def decline(self, params: dict[str, Any]) -> str | None:
        """Why this rule can't be trusted with these parameters (another JAX release), or None."""
        if missing := self.reads - params.keys():
            return f"this JAX has no parameter {', '.join(sorted(missing))} for it"
        if unknown := params.keys() - self.reads - self.carries:
            return f"jlora does not know its parameter {', '.join(sorted(unknown))} of this JAX"
        return None


RULES: dict[str, Rule] = {}

Apply = TypeVar("Apply", bound=Callable[..., list[Any]])

# What only says how arrays lie on a mesh: a filter draws the same with and without it.
LAYOUTS = frozenset(["reshard", "mesh_cast", "sharding_constraint", "pvary", "pcast"])

PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")  # what uses up a weight


def rule(
    *names: str,
    reads: Sequence[str] = (),
    carries: Sequence[str] = (),
    override: bool = False,
) -> Callable[[Apply], Apply]:
    """Registers ``apply(walk, equation, *operands) -> results`` for the named primitives.

    Operands are arrays, and a `Weight` at one place at least; results are arrays, or weights that
    are still not formed. A rule raises `Decline` where an equation needs the merged weight.

    Args:
        *names: primitives, by the names of all supported releases.
        reads: parameters that the rule uses.
        carries: parameters that may be there and that the rule passes on or may leave aside. With
            any other parameter, which a later JAX has, the rule is not used.
        override: take the place of rules that are there.

    Returns:
        what registers a function, and gives it back.

    Raises:
        ValueError: when a primitive has a rule already, without ``override``.

    Example:
        >>> from jlora import extend
        >>> @extend.rule("copy_twice")  # a primitive that moves nothing
        ... def copy_twice(walk, eqn, value):
        ...     return [walk.move(eqn, value, extend.unmoved(value.ndim), lambda factor: factor)]
        >>> "copy_twice" in extend.primitives()
        True
    """

    taken = [] if override else [name for name in names if name in RULES]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} has a rule already: pass override=True to put yours in its place"
        )

    def register(apply: Apply) -> Apply:
        for name in names:
            RULES[name] = Rule(apply, frozenset(reads), frozenset(carries))
        return apply

    return register


def primitives() -> tuple[str, ...]:
    """The names of all primitives that have a rule.

    Example:
        >>> from jlora import extend
        >>> "dot_general" in extend.primitives(), "sort" in extend.primitives()
        (True, False)
    """
    return tuple(sorted(RULES))


class Walk:
    """Runs jaxprs on operands of which some are weights.

    What a rule is called with: by `move` it makes a weight of a weight, by `merge` a plain array
    that reports say of why it was formed, by `bind` it runs its equation on other operands.

    Example:
        >>> from jlora import extend
        >>> @extend.rule("my_norm")
        ... def my_norm(walk, eqn, value):
        ...     return walk.bind(eqn, [walk.merge(value, eqn, "its norm is of all of it")])
    """

    def __init__(self, run: Any):
        self.run = run  # a `Compute` or a `Look`
        self.times = 1  # executions a call: the lengths of the scans around
        self.calls: tuple[Any, ...] = ()  # the equations around, outermost first
        self.asked: Any = None  # that of them which called a function of JAX's own
        self._jaxpr: Any = None
        self._beside: dict[int, tuple[Any, Any]] = {}

    def inside(self, eqn: Any, *, times: int = 1, jaxpr: Any = None) -> Walk:
        """The same walk in the body of an equation that runs it so many times."""
        inner = copy.copy(self)
        inner.times *= times
        inner.calls = (*self.calls, eqn)
        if self.asked is None and jaxpr is not None and _jax.is_jax_function(jaxpr):
            inner.asked = eqn
        return inner

    def beside(self, x: Any) -> Any:
        """An activation as thin products read it: one copy for all of them, which costs nothing.

        Its gradient is added up over them, and apart from that over the products beside which they
        are. Of these, chips that share the work hold parts, which they then add up once, where a
        sum in between would make it once for each product.
        """
        if _placement.on_one_device(x):
            return x
        if id(x) not in self._beside:
            self._beside[id(x)] = x, jnp.copy(x)
        return self._beside[id(x)][1]

    def __call__(self, jaxpr: Any, operands: list[Any]) -> list[Any]:
        """The results of a jaxpr (open, or closed over its constants); they may be weights."""
        jaxpr, consts = _jax.open_jaxpr(jaxpr)
        self._jaxpr = jaxpr
        self._beside = {}
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, operands, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, _jax.Literal) else values[atom]

        number = 0
        for eqn, expired in _live(jaxpr):
            operands = [read(atom) for atom in eqn.invars]
            layout = eqn.primitive.name in LAYOUTS
            with self.run.site(eqn):
                if not any(isinstance(operand, _CARRIED) for operand in operands):
                    results = self.run.bind(eqn, operands)
                else:
                    if not layout:
                        operands = fold_in(operands, number)
                    results, plain = self._equation(eqn, operands, expired)
                    for atom, operand, array in zip(eqn.invars, operands, plain, strict=True):
                        if array is not operand and _made_once(operand):
                            values[atom] = array
            values.update(zip(eqn.outvars, results, strict=True))
            number += not layout
            for var in expired:
                del values[var]
        return [self._result(read(atom)) for atom in jaxpr.outvars]

    def _equation(
        self, eqn: Any, operands: list[Any], expired: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The results, and the operands as the equation got them; nothing reads ``expired`` on."""
        for at, operand in enumerate(operands):
            if isinstance(operand, Squares) or (
                isinstance(operand, ProductSum) and eqn.invars[at] in expired
            ):
                others = [*operands[:at], *operands[at + 1 :]]
                if not any(isinstance(other, _SUMS) for other in others):
                    result = operand.follow(self, eqn, others, first=at == 0)
                    if result is not None:
                        return [result], operands
        operands = list(map(added_up, operands))
        weights = [operand for operand in operands if isinstance(operand, Weight)]
        squares = any(isinstance(operand, Squares) for operand in operands)
        if not weights and not squares:
            return self.run.bind(eqn, operands), operands
        if any(value.rows for value in weights) and not all(value.rows for value in weights):
            # rows that were looked up meet a weight: they are its input
            operands = [
                self.merge(value, eqn, "the input of an adapted weight")
                if _is_rows(value)
                else value
                for value in operands
            ]
        known = RULES.get(eqn.primitive.name)
        try:
            if known is None or squares:
                raise Decline("jlora has no rule for it")
            if reason := known.decline(eqn.params):
                raise Decline(reason)
            results = known.apply(self, eqn, *operands)
        except Decline as verdict:
            plain = self.merged(operands, eqn, str(verdict))
            return self.run.bind(eqn, plain), plain
        if not isinstance(results, list | tuple) or len(results) != len(eqn.outvars):
            count = f" of {len(results)}" if isinstance(results, list | tuple) else ""
            raise ValueError(
                f"the rule for {eqn.primitive.name} gave {type(results).__name__}{count}: "
                f"expected a list of {len(eqn.outvars)}, one for each result of the equation"
            )
        return list(results), operands

    def bind(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """The results of an equation on other operands, arrays all of them."""
        return self.run.bind(eqn, operands)

    def move(
        self,
        eqn: Any,
        value: Weight,
        movement: Movement,
        factor: Callable[[Factor], Factor],
        *others: Any,
    ) -> Weight:
        """The moved value: the equation itself on W and its other operands, ``factor`` beside."""
        w = self.run.move(self, eqn, [value.w, *others], movement, factor)
        return value.moved(w, movement, factor)

    def merged(self, values: Sequence[Any], eqn: Any, why: str) -> list[Any]:
        """The values with each weight as the plain array, each of them reported."""
        return [self.merge(value, eqn, why) for value in values]

    def merge(self, value: Any, eqn: Any, why: str) -> Any:
        """The plain array of a weight, reported; any other value as it is."""
        if isinstance(value, Squares):
            merged = self.merge(value.weight, eqn, why)
            return self.run.square(merged)
        return self.run.merge(self, value, eqn, why) if isinstance(value, Weight) else value

    def repeats(self, atom: Any) -> frozenset[int]:
        """The dimensions along which an operand is known to repeat: it was broadcast there."""
        if isinstance(atom, _jax.Literal):
            return frozenset()
        for eqn in self._jaxpr.eqns:
            if atom in eqn.outvars:
                if eqn.primitive.name != "broadcast_in_dim":
                    return frozenset()
                kept = {
                    new
                    for old, new in enumerate(eqn.params["broadcast_dimensions"])
                    if eqn.invars[0].aval.shape[old] == atom.aval.shape[new]
                }
                return frozenset(range(len(atom.aval.shape))) - kept
        return frozenset()

    def _result(self, value: Any) -> Any:
        if isinstance(value, Squares):
            return self.merge(value, None, "its squares are returned")
        return added_up(value)


_SUMS = (ProductSum, Squares)
_CARRIED = (Weight, *_SUMS)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Weight) and value.rows


def _made_once(value: Any) -> bool:
    """Whether later equations take the array that was made of it here."""
    return isinstance(value, ProductSum) or _is_rows(value)


def _live(jaxpr: Any) -> list[tuple[Any, list[Any]]]:
    """The equations that matter, each with the variables that nothing reads after it.

    An equation is dropped if nothing reads its results and it has no effect: a weight that is only
    asked for its shape is not used.
    """
    needed = {var for var in jaxpr.outvars if isinstance(var, _jax.Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if not eqn.effects and not needed.intersection(eqn.outvars):
            continue
        read = {var for var in eqn.invars if isinstance(var, _jax.Var)}
        unread = [var for var in eqn.outvars if var not in needed]
        kept.append((eqn, [*(read - needed), *unread]))
        needed |= read
    return kept[::-1]
