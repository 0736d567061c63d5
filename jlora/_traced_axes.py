"""What was seen of every weight of a function: the axes, and why some have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from jlora._lowrank import Axes


@dataclasses.dataclass(frozen=True, eq=False)
class TracedAxes(Mapping[str, Axes]):
    """The axes of every weight that a product uses, by path: what `trace_axes` gives.

    A mapping that does not change. ``axes | {path: Axes(...)}`` is another one, with these entries
    in the place of what was seen.

    Attributes:
        axes: the same as a dict.
        unclear: from the path of a weight of two or more dimensions (stacks not counted) that no
            product was seen to use as it is, to what was seen instead.
        linear: the paths of the weights that ``targets="all-linear"`` means.
        left_out: from the path of every other weight with axes to why ``"all-linear"`` leaves it
            out: rows are looked up in it, it is an output head, or `lift` would merge it.
        looked_up: from the path of each table that rows are looked up in to the dimensions along
            which they are chosen.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> def model(params, tokens):
        ...     return jnp.tanh(params["embed"][tokens] @ params["mlp"]) @ params["head"]
        >>> params = {"embed": jnp.ones((9, 4)), "mlp": jnp.ones((4, 4)), "head": jnp.ones((4, 9))}
        >>> axes = jlora.trace_axes(model, params, jnp.arange(3))
        >>> sorted(axes.linear), sorted(axes.left_out)
        (['mlp'], ['embed', 'head'])
    """

    axes: Mapping[str, Axes]
    unclear: Mapping[str, str] = dataclasses.field(default_factory=dict)
    linear: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    looked_up: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, path: str) -> Axes:
        return self.axes[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __or__(self, by_hand: Mapping[str, Axes]) -> TracedAxes:
        """With axes by hand, which hold where both have some; what has them is clear."""
        return self._with({**self.axes, **by_hand})

    def __ror__(self, by_hand: Mapping[str, Axes]) -> TracedAxes:
        """With axes by hand where nothing was seen."""
        return self._with({**by_hand, **self.axes})

    def _with(self, axes: dict[str, Axes]) -> TracedAxes:
        unclear = {path: why for path, why in self.unclear.items() if path not in axes}
        return dataclasses.replace(self, axes=axes, unclear=unclear)
