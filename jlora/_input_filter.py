"""What an adapter gets of its input: dropout, one mask for each use and each step of a loop."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jlora._lowrank import Factor, along


class InputFilter(abc.ABC):
    """A registered pytree that stands between an activation and A; W gets the activation whole.

    A node gives its own from `Node.input_filter`.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import extend
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class AtMost(extend.InputFilter):
        ...     most: jax.Array
        ...     def __call__(self, x, dims):
        ...         return jnp.minimum(x, self.most)
        ...     def moved(self, factor):  # it has no factors
        ...         return self
        ...     def of_all_steps(self):  # all steps have the same
        ...         return AtMost(self.most[0])
        >>> AtMost(jnp.float32(1))(jnp.array([0.5, 2.0]), (0,)).tolist()
        [0.5, 1.0]
    """

    @property
    def dims(self) -> frozenset[int]:
        """The weight's dimensions along which it differs: an activation is repeated along them."""
        return frozenset()

    @abc.abstractmethod
    def __call__(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        """The filtered activation; for each axis of x, the weight's dimension that it meets."""

    def fold_in(self, place: Any) -> InputFilter:
        """The filter of one place among several: an equation's number, a step, a device's index."""
        return self

    @abc.abstractmethod
    def moved(self, factor: Callable[[Factor], Factor]) -> InputFilter:
        """The filter with ``factor`` made of each of its factors: they move as the weight's do."""

    @abc.abstractmethod
    def of_all_steps(self) -> InputFilter:
        """The filter of a weight that a loop gave back; itself, if all its arrays are factors.

        Its arrays are those of all steps, and its factors have dimension 0 in front.
        """

    def stacked(self, others: Sequence[InputFilter], dim: int) -> InputFilter | None:
        """One filter for weights that are stacked along ``dim``, or None if there can be none."""
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout(InputFilter):
    """Each entry is zero with probability ``rate``, and the others are 1 / (1 - rate) as large.

    Source: Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature
    detectors", arXiv 1207.0580.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora.extend import Dropout, Factor
        >>> dropout = Dropout(jax.random.key(0), Factor(jnp.float32(0.5), ()))
        >>> jnp.unique(dropout(jnp.ones((8, 7)), (None, 0))).tolist()
        [0.0, 2.0]
    """

    key: jax.Array
    rate: Factor  # float32, over no dimension; over one, where weights were stacked along it

    @property
    def dims(self) -> frozenset[int]:
        return frozenset(self.rate.dims)

    def __call__(self, x: jax.Array, dims: tuple[int | None, ...]) -> jax.Array:
        kept = 1 - along(self.rate, dims)
        mask = jax.random.bernoulli(self.key, kept, x.shape)
        return jnp.where(mask, x / kept.astype(x.dtype), jnp.zeros((), x.dtype))

    def fold_in(self, place: Any) -> Dropout:
        return Dropout(jax.random.fold_in(self.key, place), self.rate)

    def moved(self, factor: Callable[[Factor], Factor]) -> Dropout:
        return Dropout(self.key, factor(self.rate))

    def of_all_steps(self) -> Dropout:
        return Dropout(self.key[0], Factor(self.rate.array[0], self.rate.dims[1:]))  # all are alike

    def stacked(self, others: Sequence[InputFilter], dim: int) -> Dropout | None:
        rates = [each.rate for each in (self, *others) if isinstance(each, Dropout)]
        if len(rates) <= len(others) or any(rate.dims for rate in rates):
            return None
        return Dropout(self.key, Factor(jnp.stack([rate.array for rate in rates]), (dim,)))
