"""What is known of the torch model from our side: parameters, and the parts of our leaves in them.

A leaf is one parameter of torch, or one for each layer of its stack, or several side by side (fused
here and split there), or a part of one (split here and fused there).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jlora._frozen_leaf import plain
from jlora._lowrank import Axes


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our leaves, read as a stack of matrices (or of vectors: biases and scales)."""

    path: str
    shape: tuple[int, ...]
    axes: Axes | None  # None: not a matrix
    layers: int  # how many stack dimensions its names count; the others stand in one parameter
    embeds: bool  # rows are looked up in it: torch keeps (in, out)
    value: Any

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of all stack dimensions."""
        dims = range(self.layers) if self.axes is None else self.axes.stack
        return tuple(self.shape[dim] for dim in dims)

    @property
    def inputs(self) -> int:
        return 1 if self.axes is None else math.prod(self.shape[d] for d in self.axes.inputs)

    @property
    def outputs(self) -> int:
        if self.axes is None:
            return math.prod(self.shape[self.layers :])
        return math.prod(self.shape[d] for d in self.axes.outputs)

    def matrices(self, value: Any) -> np.ndarray:
        """(*stack, in, out), or (*stack, out) where it is no matrix, of a value in its shape."""
        value = np.asarray(value)
        if self.axes is None:
            return value.reshape(*self.stack, self.outputs)
        value = value.transpose(self._order)
        return value.reshape(*self.stack, self.inputs, self.outputs)

    def from_matrices(self, value: np.ndarray) -> np.ndarray:
        """The value in the leaf's own shape."""
        if self.axes is None:
            return value.reshape(self.shape)
        moved = value.reshape([self.shape[dim] for dim in self._order])
        return moved.transpose(np.argsort(self._order))

    def base(self) -> Any:
        """The leaf's own value, an array also where a frozen leaf stands for it.

        Raises:
            ValueError: when only its shape is known.
        """
        if isinstance(self.value, jax.ShapeDtypeStruct):
            raise ValueError(f"{self.path}: its value is needed, but only its shape is given")
        return plain(self.value)

    @property
    def _order(self) -> tuple[int, ...]:
        assert self.axes is not None
        return (*self.axes.stack, *self.axes.inputs, *self.axes.outputs)


@dataclasses.dataclass(frozen=True)
class Part:
    """A span of a leaf's outputs in one layer, and the span of a torch parameter that it is."""

    leaf: Leaf
    layer: tuple[int, ...]
    ours: slice
    theirs: slice


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of the torch model, with the parts of our leaves that make it up."""

    module: str
    name: str  # "weight", "bias", or that of a parameter without a module of its own
    parts: tuple[Part, ...]
    transposed: bool  # torch keeps (in, out), as we do
    as_parameter: bool = False  # PEFT knows its module not, or not by this name
    turned: bool = False  # PEFT takes its inputs for outputs

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def bare(self) -> bool:
        """Whether PEFT adapts it as a parameter, not its module: experts, some routers."""
        return self.name not in ("weight", "bias")

    @property
    def lone(self) -> bool:
        """Whether PEFT adapts it as a parameter, not as its module."""
        return self.bare or self.as_parameter

    @property
    def is_matrix(self) -> bool:
        return self.parts[0].leaf.axes is not None and self.name != "bias"

    def owns(self, tensor: str) -> bool:
        """Whether a tensor's name is one of its module."""
        return tensor.startswith(f"{self.module}.")

    @property
    def embeds(self) -> bool:
        return self.parts[0].leaf.embeds

    @property
    def outputs(self) -> int:
        return max(part.theirs.stop for part in self.parts)

    @property
    def target(self) -> str:
        """What PEFT's patterns are held against."""
        return self.full_name if self.bare else self.module

    def in_torch(self, matrices: Callable[[str], np.ndarray]) -> np.ndarray:
        """The torch parameter, (out, in), (in, out) or (experts, out, in), out of our matrices."""
        parts = sorted(self.parts, key=lambda part: part.theirs.start)
        pieces = [matrices(part.leaf.path)[part.layer][..., part.ours] for part in parts]
        whole = np.concatenate(pieces, axis=-1)
        if not self.is_matrix:
            return whole.reshape(self.shape_in_torch)
        return whole if self.transposed else np.swapaxes(whole, -1, -2)

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor as (*experts, in, out), or as a vector: what `Part.theirs` is a span of."""
        if not self.is_matrix:
            return tensor.reshape(-1)
        return tensor if self.transposed else np.swapaxes(tensor, -1, -2)

    @property
    def shape_in_torch(self) -> tuple[int, ...]:
        leaf = self.parts[0].leaf
        if not self.is_matrix:
            return leaf.shape[leaf.layers :] if len(self.parts) == 1 else (self.outputs,)
        sizes = (leaf.inputs, self.outputs) if self.transposed else (self.outputs, leaf.inputs)
        return (*leaf.stack[leaf.layers :], *sizes)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All that is known of the torch model, from our side."""

    leaves: dict[str, Leaf]  # in the order of the tree
    parameters: dict[str, Parameter]  # by their full names, in the order of the names given
    tied: str | None  # the embedding's module, where the head is the embedding
    unclear: dict[str, str]  # leaves whose axes are not known, and why
    is_language_model: bool
    aside: tuple[str, ...] = ()  # the beginnings of what the torch model has beside our leaves
    saved_whole: str | None = None  # a module that PEFT saves with all that is in it, or not

    def of_leaf(self, path: str) -> list[Parameter]:
        """The parameters that a leaf has a part in."""
        return [p for p in self.parameters.values() if any(q.leaf.path == path for q in p.parts)]

    def is_one_parameter(self, path: str) -> bool:
        """Whether a leaf is a parameter of torch, whole: no stack of them, no part, no parts."""
        parameters = self.of_leaf(path)
        return len(parameters) == 1 and len(parameters[0].parts) == 1

    def of_module(self, module: str) -> list[Parameter]:
        return [p for p in self.parameters.values() if p.module == module]

    def of_unit(self, unit: str) -> list[Parameter]:
        """The parameters of one of `units`."""
        return [p for p in self.parameters.values() if self._unit(p.module) == unit]

    @property
    def units(self) -> list[str]:
        """The modules; those within ``saved_whole`` as one."""
        return list(dict.fromkeys(map(self._unit, self.modules)))

    def _unit(self, module: str) -> str:
        whole = self.saved_whole
        return whole if whole and f"{module}.".startswith(f"{whole}.") else module

    @property
    def modules(self) -> list[str]:
        """Every module that has a parameter of ours."""
        return list(dict.fromkeys(p.module for p in self.parameters.values()))

    @property
    def elsewhere(self) -> list[str]:
        """Modules that are none of ours, and may have the same last names.

        A vision tower's; and those that hold ours, such as ``layers.0``.
        """
        beside = [
            f"{part}{name.rpartition('.')[2]}" for part in self.aside for name in self.modules
        ]
        holding = {
            name[: found.start()] for name in self.modules for found in re.finditer(r"\.", name)
        }
        return [*beside, *sorted(holding - {*self.modules})]
