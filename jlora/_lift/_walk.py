"""The interpreter: one walk over a jaxpr in which some values are adapted weights.

The walk knows nothing of low rank: an equation that no adapted value touches runs as it was; one
that an adapted value touches goes to the rule registered for its primitive; where there is none, or
the rule declines, it gets the merged weight. So the worst case is slower, never different.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from jlora._lift import _compat
from jlora._lift._adapted import Adapted, Opaque, at_place
from jlora._lift._apart import Apart, follow, together


@dataclasses.dataclass(frozen=True)
class Use:
    """One meeting of an adapted leaf with an operation that computes with it."""

    path: str
    operation: str  # the primitive's name
    source: str  # file:line (function)
    factored: bool  # False: the merged weight was formed
    why: str
    times: int  # executions a call: the lengths of the scans around it; a while counts once
    base_flops: int = 0  # of the operation with W, once
    adapter_flops: int = 0  # of what the adapter adds, once
    adapter_bytes: int = 0  # read and written for it, once
    where: tuple[int, ...] = dataclasses.field(default=(), repr=False)  # equations, outermost first


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a primitive acts on adapted values, and the parameters that its author knew of."""

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


def rule(*names: str, reads: tuple[str, ...] = (), carries: tuple[str, ...] = ()):
    """Register ``apply(walk, eqn, *operands) -> list of results`` for the named primitives.

    Args:
        names: primitives, by the names of all supported releases.
        reads: parameters that the rule uses.
        carries: parameters that may be there and that the rule passes on or may leave aside.
    """

    def register(apply):
        for name in names:
            RULES[name] = Rule(apply, frozenset(reads), frozenset(carries))
        return apply

    return register


class Walk:
    """Runs jaxprs on operands of which some are `Adapted`, and tells ``on_use`` what they met."""

    def __init__(self, on_use: Callable[[Use], object], *, share_jits: bool = True):
        self.on_use = on_use
        self.share_jits = share_jits  # one trace for equal calls; off where each use is reported
        self.jits: dict[Any, Any] = {}
        self.times = 1
        self.where: tuple[int, ...] = ()

    def inside(self, eqn: Any, *, times: int = 1) -> Walk:
        """The same walk in the body of an equation that runs it so many times."""
        inner = copy.copy(self)
        inner.times *= times
        inner.where = (*self.where, id(eqn))
        return inner

    def __call__(self, jaxpr: Any, operands: list[Any]) -> list[Any]:
        """The results of a jaxpr (open, or closed over its constants); they may be adapted."""
        jaxpr, consts = _compat.open_jaxpr(jaxpr)
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, operands, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, _compat.Literal) else values[atom]

        for number, (eqn, expired) in enumerate(_live(jaxpr)):
            operands = at_place([read(atom) for atom in eqn.invars], number)
            with _compat.site(eqn):
                results, plain = self._equation(eqn, operands, expired)
            for atom, operand, array in zip(eqn.invars, operands, plain, strict=True):
                if array is not operand and (isinstance(operand, Apart) or _is_activation(operand)):
                    values[atom] = array  # from here on: it is made once
            values.update(zip(eqn.outvars, results, strict=True))
            for var in expired:
                del values[var]
        return [together(read(atom)) for atom in jaxpr.outvars]

    def _equation(
        self, eqn: Any, operands: list[Any], expired: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The results, and the operands as the equation got them; nothing reads ``expired`` on."""
        apart = [
            atom
            for atom, operand in zip(eqn.invars, operands, strict=True)
            if isinstance(operand, Apart)
        ]
        if len(apart) == 1 and apart[0] in expired and (result := follow(eqn, operands)):
            return [result], operands
        operands = list(map(together, operands))
        adapted = [operand for operand in operands if isinstance(operand, Adapted)]
        if not adapted:
            return _compat.bind(eqn, operands), operands
        if any(value.activation for value in adapted) and not all(
            value.activation for value in adapted
        ):  # rows that were looked up meet a weight: they are its input
            rows = "the input of an adapted weight"
            operands = [
                self.expand(value, eqn, rows) if _is_activation(value) else value
                for value in operands
            ]
        known = RULES.get(eqn.primitive.name)
        try:
            if known is None:
                raise Opaque("jlora has no rule for it")
            if reason := known.decline(eqn.params):
                raise Opaque(reason)
            return known.apply(self, eqn, *operands), operands
        except Opaque as verdict:
            plain = self.plain(operands, eqn, str(verdict))
            return _compat.bind(eqn, plain), plain

    def plain(self, values: list[Any], eqn: Any, why: str) -> list[Any]:
        """The values with every adapted one expanded, each reported."""
        return [self.expand(v, eqn, why) if isinstance(v, Adapted) else v for v in values]

    def expand(self, value: Adapted, eqn: Any, why: str) -> Any:
        """The merged array of an adapted value; chosen or summed rows count as factored."""
        if value.activation:
            why = "the chosen or summed rows of W, and those of A times B"
        rank_flops = sum(2 * value.w.size * term.rank for term in value.terms)
        self.report(
            value,
            eqn,
            factored=value.activation,
            why=why,
            adapter_flops=rank_flops,
            adapter_bytes=value.w.size * value.dtype.itemsize,
        )
        return value.expand()

    def report(self, value: Adapted, eqn: Any, *, factored: bool, why: str, **costs: int) -> None:
        """Tell ``on_use`` that an adapted value met this equation."""
        self.on_use(
            Use(
                path=str(value.origin),
                operation=eqn.primitive.name if eqn is not None else "return",
                source=_compat.source(eqn) if eqn is not None else "the function's result",
                factored=factored,
                why=why,
                times=self.times,
                where=(*self.where, id(eqn)),
                **costs,
            )
        )


def _is_activation(value: Any) -> bool:
    return isinstance(value, Adapted) and value.activation


def _live(jaxpr: Any) -> list[tuple[Any, list[Any]]]:
    """The equations that matter, each with the variables that nothing reads after it.

    An equation is dropped if nothing reads its results and it has no effect: a weight that is only
    asked for its shape is not used.
    """
    needed = {var for var in jaxpr.outvars if isinstance(var, _compat.Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if not eqn.effects and not needed.intersection(eqn.outvars):
            continue
        read = {var for var in eqn.invars if isinstance(var, _compat.Var)}
        unread = [var for var in eqn.outvars if var not in needed]
        kept.append((eqn, [*(read - needed), *unread]))
        needed |= read
    return kept[::-1]
