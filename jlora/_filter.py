"""What an adapter gets of its input: dropout, one mask for each use and each step of a loop."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jlora._lowrank import Factor


class Filter(abc.ABC):
    """A registered pytree that stands between an activation and A; W gets the activation whole."""

    @abc.abstractmethod
    def __call__(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        """The filtered activation; for each axis of x, the weight's dimension that it meets."""

    def at(self, place: Any) -> Filter:
        """The filter for one place of several: an equation's number, a step, a device's index."""
        return self

    def stacked(self) -> Filter:
        """The filter of a value that a loop gave back, each step's own one after the other."""
        return self

    def moved(self, factor: Callable[[Factor], Factor]) -> Filter:
        """The filter with its factors moved as the weight's are."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout(Filter):
    """Each entry is zero with probability ``rate``, and the others are 1 / (1 - rate) as large."""

    key: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        kept = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def at(self, place: Any) -> Dropout:
        return Dropout(jax.random.fold_in(self.key, place), self.rate)

    def stacked(self) -> Dropout:
        return Dropout(self.key[0], self.rate)
