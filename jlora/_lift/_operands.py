"""What rules ask of an equation's operands, of which some are weights in flight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from jlora._lift._base import Base
from jlora._lift._decline import Decline
from jlora._lift._term import Origin
from jlora._lift._weight import Weight
from jlora._lowrank import Dims, along


def bases(values: Iterable[Any]) -> list[Any]:
    """The operands with W, as the model sees it, in each weight's place."""
    return [value.base if isinstance(value, Weight) else value for value in values]


def gains(values: Iterable[Any], dims: Iterable[int] = ()) -> tuple[Dims, list[Any]] | None:
    """The gains of several values over dimensions that all share, 1 for a value without.

    The dimensions are those of all gains and ``dims``. None where no value has a gain.
    """
    each = [value.gain if isinstance(value, Weight) else None for value in values]
    present = [gain for gain in each if gain is not None]
    if not present:
        return None
    order = tuple(sorted({*dims, *(dim for gain in present for dim in gain.dims)}))
    ones = jnp.ones((1,) * len(order), jnp.float32)
    return order, [ones if gain is None else along(gain, order) for gain in each]


def refuse_form(*values: Any) -> None:
    """Decline for weights that are no sum of W and products."""
    if any(isinstance(value, Weight) and value.form is not None for value in values):
        raise Decline("the weight's method makes it entry by entry")


def refuse_gain(*values: Any) -> None:
    """Decline for weights of which each output has a magnitude of its own."""
    if any(isinstance(value, Weight) and value.gain is not None for value in values):
        raise Decline("the weight's magnitudes can't be kept apart through it")


def fold_in(values: Iterable[Any], place: Any) -> list[Any]:
    """The values with each filter that of this place: an equation's number, a step of a loop.

    What stands there twice stays one.
    """
    made: dict[int, Any] = {}
    return [
        made.setdefault(id(value), value.fold_in(place))
        if isinstance(value, Weight) and value.drops
        else value
        for value in values
    ]


def origins(value: Any) -> list[str]:
    """The leaves that a value is made of, in the order of its terms; none if it is an array."""
    if not isinstance(value, Weight):
        return []
    names = [str(origin) for term in value.terms for origin in term.origins]
    return [*names, value.w.origin] if isinstance(value.w, Base) else names


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The value with its leaves under other names."""
    if not isinstance(value, Weight):
        return value
    value = value.map_terms(
        lambda term: dataclasses.replace(
            term, origins=tuple(Origin(names[origin]) for origin in map(str, term.origins))
        )
    )
    if isinstance(value.w, Base):
        value = value.replace(w=value.w.renamed(names[value.w.origin]))
    return value
