"""Only looking at equations: shapes, what products do with weights, and where their results go."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jlora._lift import _jax
from jlora._lift._decline import Decline
from jlora._lift._movement import Movement
from jlora._lift._walk import PRODUCTS, Walk
from jlora._lift._watched import Watched, WatchedBase
from jlora._lift._weight import Weight
from jlora._lowrank import Axes, Factor

_OTHER = ""  # stands for a product that no weight alone made


@dataclasses.dataclass(frozen=True)
class Seen:
    """A plain value: its shape, and where it comes from."""

    shape: tuple[int, ...]
    dtype: Any
    # the weights of the products that it comes from, with no other product between
    last: frozenset[str] = frozenset()
    data: bool = False  # made of what the function was given beside its parameters

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Look:
    """Notes what each weight meets."""

    def __init__(self):
        self.found: dict[str, Axes] = {}
        self.other: dict[str, str] = {}  # no product: what was seen instead
        self.met: set[str] = set()
        self.multiplied: set[str] = set()  # weights that a product uses as they are
        self.merged_at: dict[str, str] = {}  # weights that a product would get merged, and why
        self.looked_up: dict[str, frozenset[int]] = {}  # and along which dimensions
        self.read: set[str] = set()  # weights whose product's result another product reads

    # equations

    @staticmethod
    def site(eqn: Any) -> Any:
        return contextlib.nullcontext()

    def bind(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        """Plain results."""
        weights = [each for each in operands if isinstance(each, WatchedBase)]
        seen = [each for each in operands if isinstance(each, Seen)]
        data = bool(weights) or any(each.data for each in seen)
        multiplies = eqn.primitive.name in PRODUCTS
        if weights:
            last = frozenset().union(*(each.paths for each in weights))
            self._reads(seen)
        elif multiplies and sum(bool(each.last) for each in seen) >= 2:
            last = frozenset([_OTHER])
            self._reads(seen)
        else:
            last = None
        return [
            Seen(
                var.aval.shape,
                var.aval.dtype,
                last if last is not None else _passed(seen, var.aval.dtype),
                data,
            )
            for var in eqn.outvars
        ]

    def _reads(self, values: Sequence[Seen]) -> None:
        self.read.update(*(each.last for each in values))

    def move(
        self,
        walk: Walk,
        eqn: Any,
        operands: list[Any],
        movement: Movement,
        factor: Callable[[Factor], Factor],
    ) -> Any:
        base = operands[0]
        if movement.summed:  # rows that were looked up are lost in their sum
            self._note_lookups(base.leaves)
        return base.changed(eqn.outvars[0].aval.shape, movement)

    def _note_lookups(self, leaves: Sequence[Watched]) -> list[Watched]:
        """Notes the leaves that rows were looked up in; the others."""
        others = []
        for leaf in leaves:
            if leaf.picked and leaf.left:
                self.met.add(leaf.path)
                self.looked_up[leaf.path] = leaf.picked
                self._product(leaf, leaf.picked, leaf.left)
            else:
                others.append(leaf)
        return others

    def place(self, walk: Walk, eqn: Any, values: list[Any]) -> list[Any]:
        return values

    def parts(self, walk: Walk, eqn: Any, w: Any, movement: Movement) -> list[Any]:
        return [w.changed(var.aval.shape, movement) for var in eqn.outvars]

    def join(
        self,
        walk: Walk,
        eqn: Any,
        operands: list[Any],
        movements: Sequence[Movement],
        varies: frozenset[int] | None,
    ) -> Any:
        """Weights side by side, or summed, are each used as the whole is; with data they are not.

        A scale along every dimension is what a norm's is: it multiplies an activation.
        """
        weights = [each for each in operands if isinstance(each, WatchedBase)]
        for each in operands:
            adds = isinstance(each, Seen) and each.data and each.size > 1 and varies is None
            if adds and jax.numpy.issubdtype(each.dtype, np.inexact):
                raise Decline("activations are put together with it")
        if varies is not None:
            shape = weights[0].shape
            if {dim for dim, size in enumerate(shape) if size != 1} <= varies:
                raise Decline("an elementwise product over all dimensions")
        if len(weights) > 1 and any(leaf.is_vector for each in weights for leaf in each.leaves):
            raise Decline("rows or biases are put together")
        [out] = eqn.outvars
        moved = [
            each.changed(out.aval.shape, movement)
            for each, movement in zip(operands, movements, strict=True)
            if isinstance(each, WatchedBase)
        ]
        leaves = tuple(leaf for each in moved for leaf in each.leaves)
        return dataclasses.replace(moved[0], dtype=out.aval.dtype, leaves=leaves)

    def one_of_two(self, walk: Walk, eqn: Any, lhs: Weight, rhs: Weight) -> tuple[Any, Any]:
        """Two weights that meet in a product: each of them is multiplied."""
        self.multiplied |= lhs.w.paths | rhs.w.paths
        return lhs, Seen(rhs.shape, rhs.dtype, rhs.w.paths)

    def square(self, array: Any) -> Any:
        return array

    def sum_of_squares(self, walk: Walk, eqn: Any, value: Weight, over: Sequence[int]) -> Any:
        """A norm: no product of the weight, and nothing to be told of."""
        self.met |= value.w.paths
        [out] = eqn.outvars
        return Seen(out.aval.shape, out.aval.dtype)

    # what is noted

    def report(self, walk: Walk, value: Weight, eqn: Any, *_: Any, **__: Any) -> None:
        """A product that `Compute` would do from factors."""
        if not value.rows:
            self.multiplied |= value.w.paths

    def contracts(self, value: Weight, contracted: Sequence[int], kept: Sequence[int]) -> None:
        """A product that contracts some dimensions of a weight and keeps others."""
        for leaf in value.w.leaves:
            self._product(leaf, leaf.own_dims(contracted), leaf.own_dims(kept))

    def _product(self, leaf: Watched, inputs: frozenset[int], outputs: frozenset[int]) -> None:
        """Notes a product; what it neither contracts nor keeps is a stack."""
        self.met.add(leaf.path)
        if leaf.path in self.found:
            return
        if leaf.picked and not (inputs - leaf.stack and outputs - leaf.stack):
            if inputs:  # rows that were looked up, then multiplied
                self.looked_up[leaf.path] = leaf.picked
            inputs, outputs = leaf.picked, (inputs | outputs) - leaf.picked
        if inputs & outputs:
            self.other[leaf.path] = "one of its dimensions is partly contracted and partly kept"
            return
        stack = frozenset(range(len(leaf.shape))) - inputs - outputs
        inputs, outputs = inputs - leaf.stack, outputs - leaf.stack
        if not inputs or not outputs:
            wide = [dim for dim in inputs | outputs if leaf.shape[dim] != 1]
            if len(wide) >= 2:  # else a vector: a bias or a scale
                self.other.setdefault(leaf.path, "a product contracts all of it, or nothing")
            return
        self.found[leaf.path] = Axes(
            inputs=tuple(sorted(inputs)),
            outputs=tuple(sorted(outputs)),
            stack=tuple(sorted(stack | leaf.stack)),
        )

    def merge(self, walk: Walk, value: Weight, eqn: Any, why: str) -> Any:
        """A use that is no product from factors: a lookup has its roles, anything else is told."""
        last = set()
        for leaf in self._note_lookups(value.w.leaves):
            self.met.add(leaf.path)
            kept = leaf.left
            if eqn is not None and eqn.primitive.name in PRODUCTS:
                self.merged_at.setdefault(leaf.path, why)
            wide = leaf.own_dims(dim for dim, size in enumerate(value.shape) if size != 1)
            if len(kept & wide) >= 2 and not _is_bias(leaf, eqn, value.shape):
                last.add(leaf.path)
                name = "returned by the function" if eqn is None else f"`{eqn.primitive.name}`"
                asked = walk.asked if walk.asked is not None else eqn
                at = "" if asked is None else f" at {_jax.source(asked)}"
                self.other.setdefault(
                    leaf.path, f"{name}{at} computes with it, and that is no product"
                )
        looked_up = any(leaf.picked for leaf in value.w.leaves)
        return Seen(value.shape, value.dtype, frozenset(last), data=value.rows and looked_up)

    def plain(self, base: WatchedBase) -> Any:
        return Seen(base.shape, base.dtype)

    # control flow: bodies run once, and loops until what they carry tells nothing new

    def jit(self, eqn: Any, body: Callable[..., list[Any]], operands: Sequence[Any]) -> list[Any]:
        return body(*operands)

    def checkpoint(self, body: Callable[..., Any], operands: Sequence[Any], **options: Any) -> Any:
        return body(*operands)

    def scan(
        self,
        body: Callable[[Any, Any], tuple[Any, Any]],
        init: Any,
        xs: Any,
        *,
        length: int,
        **options: Any,
    ) -> tuple[Any, Any]:
        step = jax.tree.map(_one_of, xs)
        carry, ys = _until_settled(lambda carry: body(carry, step), init)
        return carry, jax.tree.map(lambda y: _many_of(y, length), ys)

    def while_loop(self, cond: Callable[[Any], Any], body: Callable[[Any], Any], init: Any) -> Any:
        cond(init)
        return _until_settled(lambda state: (body(state), None), init)[0]

    def shapes(self, body: Callable[..., list[Any]], operands: Sequence[Any]) -> list[Any]:
        return body(*operands)

    def switch(
        self,
        index: Any,
        branches: Sequence[Callable[..., Any]],
        platforms: Any,
        operands: Sequence[Any],
    ) -> list[Any]:
        each = [branch(*operands) for branch in branches]
        return jax.tree.map(lambda *values: _either(*values), *each)

    def shard_map(
        self,
        body: Callable[..., Any],
        operands: Sequence[Any],
        specs: Callable[[], Any],
        **options: Any,
    ) -> Any:
        return body(*operands)

    def constrain(self, value: Any, sharding: Any) -> Any:
        return value

    def custom_jvp(self, function: Any) -> list[Any]:
        return function.values(*function.flat)

    def custom_vjp(self, function: Any) -> list[Any]:
        return function.values(*function.flat)

    # what was seen

    def heads(self, results: Sequence[Any]) -> set[str]:
        """The weights whose product alone makes a result that no other product reads."""
        alone = [each.last for each in results if isinstance(each, Seen) and len(each.last) == 1]
        return {path for last in alone for path in last if path} - self.read


def _passed(values: Sequence[Seen], dtype: Any) -> frozenset[str]:
    """Where a result comes from: an index or a mask leaves no trace in what it chooses."""
    floats = jax.numpy.issubdtype(dtype, np.inexact)
    return frozenset().union(
        *(
            each.last
            for each in values
            if not floats or jax.numpy.issubdtype(each.dtype, np.inexact)
        )
    )


def _is_bias(leaf: Watched, eqn: Any, shape: tuple[int, ...]) -> bool:
    """Whether the leaf is added to something larger; a multiplied one may be a product."""
    if eqn is None or eqn.primitive.name == "mul":
        return False
    if eqn.primitive.name in ("concatenate", "stack", "pad"):  # beside other values, whole
        return leaf.spread
    return leaf.spread or any(math.prod(out.aval.shape) > math.prod(shape) for out in eqn.outvars)


def _as_seen(value: Any) -> Any:
    """A constant as a plain value; every other as it is."""
    if isinstance(value, (Seen, WatchedBase)):
        return value
    return Seen(np.shape(value), jax.numpy.result_type(value))


def _one_of(value: Any) -> Any:
    """What a step of a loop gets of a value."""
    if isinstance(value, WatchedBase):
        return value
    value = _as_seen(value)
    return dataclasses.replace(value, shape=value.shape[1:])


def _many_of(value: Any, length: int) -> Any:
    if isinstance(value, Seen):
        return dataclasses.replace(value, shape=(length, *value.shape))
    return value


def _either(*values: Any) -> Any:
    seen = [value for value in values if isinstance(value, Seen)]
    if not seen:
        leaves = dict.fromkeys(leaf for value in values for leaf in value.leaves)
        return dataclasses.replace(values[0], leaves=tuple(leaves))
    last = frozenset().union(*(each.last for each in seen))
    return dataclasses.replace(seen[0], last=last, data=any(each.data for each in seen))


def _until_settled(step: Callable[[Any], tuple[Any, Any]], carry: Any) -> tuple[Any, Any]:
    """The last results of a loop whose body tells nothing new of what it carries."""
    carry = jax.tree.map(_as_seen, carry)
    while True:
        new, ys = step(carry)
        both = jax.tree.map(_either, carry, new)
        if both == carry:
            return new, ys
        carry = both
