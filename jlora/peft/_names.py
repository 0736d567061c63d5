"""Where the numbers of our leaves stand in the torch model: modules, layers, orientation.

A leaf is one parameter of torch, or one for each layer of its stack, or several side by side (fused
here and split there), or a part of one (split here and fused there).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jlora import _paths
from jlora._frozen_leaf import plain
from jlora._lowrank import Axes
from jlora._words import first_few

# A torch name, or several with their outputs where one leaf holds them side by side.
Name = str | Mapping[str, int]
Names = Mapping[str, Name] | Callable[[str], Name | None]

HEAD = "lm_head"
_AS_OURS = ("conv1d", "experts_as_ours")  # kinds that torch keeps as (in, out)
_EMBEDDING = re.compile(r"embed|(^|[/.])(wte|wpe)($|[/.])")


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
        """Modules that may stand beside ours, under the same last names: a vision tower's."""
        return [f"{part}{name.rpartition('.')[2]}" for part in self.aside for name in self.modules]


def layout(
    model: Any,
    names: Names | None,
    axes: Mapping[str, Axes] | None,
    *,
    apart: bool = False,
) -> Layout:
    """The layout of a `jlora.models.Model`, or of a tree of parameters with ``names``.

    Args:
        model: as for `jlora.peft.load`.
        names: as for `jlora.peft.load`.
        axes: as for `jlora.peft.load`.
        apart: in a model with experts every expert has modules of its own, as before
            transformers 5.

    Raises:
        ValueError: when the names do not fit the tree: all that do not are named.
    """
    from jlora.models import Model

    kinds: Mapping[str, str] = {}
    parameters_alone: set[str] = set()
    turned: set[str] = set()
    ours = False  # whether each name is that of a parameter
    if known := isinstance(model, Model):
        tree, stored = model.params, _stored(model)
        ours = names is None
        names = names or {path: _name(each, model, path, apart) for path, each in stored.items()}
        kinds = {path: each.kind for path, each in stored.items()}
        turned = {path for path, each in stored.items() if each.turned_in_peft}
        parameters_alone = {p for p, s in stored.items() if s.kind == "router" or s.as_parameter}
    elif names is None:
        raise ValueError(
            "names is missing: expected a jlora.models.Model, or a tree of parameters with "
            "names={our path: torch module}"
        )
    else:
        tree = model
    values, _ = _paths.flatten(tree)
    if callable(names):
        names = {path: name for path in values if (name := names(path)) is not None}
    else:
        names = dict(names)
    problems = [
        f"names has {path!r}, which is no leaf. {_paths.nearest(path, values, 3)}"
        for path in names
        if path not in values
    ]
    leaves: dict[str, Leaf] = {}
    unclear: dict[str, str] = {}
    found: dict[str, tuple[str, str, list[Part]]] = {}
    for path, name in names.items():
        if path not in values:
            continue
        each = [name] if isinstance(name, str) else list(name)
        braces = {one.count("{}") for one in each}
        if len(braces) != 1:
            problems.append(f"{path}: its names differ in how many {{}} they have: {name!r}")
            continue
        leaf = _leaf(path, values[path], braces.pop(), each, axes, kinds.get(path), unclear)
        leaves[path] = leaf
        sizes = [leaf.outputs] if isinstance(name, str) else list(name.values())
        if sum(sizes) != leaf.outputs:
            problems.append(f"{path} has {leaf.outputs} outputs, its names speak of {sum(sizes)}")
            continue
        for layer in itertools.product(*map(range, leaf.stack[: leaf.layers])):
            start = 0
            for one, size in zip(each, sizes, strict=True):
                name = one.format(*_numbers(leaf, layer))
                module, parameter = _split(name, leaf, of_parameter=ours)
                place = found.setdefault(f"{module}.{parameter}", (module, parameter, []))
                offset = sum(p.theirs.stop - p.theirs.start for p in place[2])
                place[2].append(
                    Part(leaf, layer, slice(start, start + size), slice(offset, offset + size))
                )
                start += size
    parameters = {
        name: Parameter(
            *(module, parameter, tuple(parts), _transposed(parts, kinds)),
            as_parameter=parts[0].leaf.path in parameters_alone,
            turned=parts[0].leaf.path in turned,
        )
        for name, (module, parameter, parts) in found.items()
    }
    for name, parameter in parameters.items():
        if len({(p.leaf.inputs, p.leaf.stack[p.leaf.layers :]) for p in parameter.parts}) > 1:
            paths = ", ".join(part.leaf.path for part in parameter.parts)
            problems.append(f"{paths}: all are {name}, but they differ in their inputs")
    if problems:
        raise ValueError("the names do not fit the parameters:" + first_few(problems, 12))
    tied = None
    if known and model.config.tied:
        tied = next(iter(parameters.values())).module
    leaves = {path: leaves[path] for path in values if path in leaves}
    aside, whole = (), None
    if known:
        family = _family(model)
        aside, whole = family.tensors_aside, family.saved_whole
    return Layout(leaves, parameters, tied, unclear, known, aside, whole)


def _numbers(leaf: Leaf, layer: tuple[int, ...]) -> tuple[int, ...]:
    """A place in the stack as names count it: its first number is that of a layer."""
    if not layer:
        return layer
    return (_paths.numbers(leaf.path, leaf.stack[0])[layer[0]], *layer[1:])


def _family(model: Any) -> Any:
    from jlora.models import _families

    return _families.family_of(model.config.family, model.name)


def _stored(model: Any) -> dict[str, Any]:
    """How a model's leaves lie in transformers, in its order: the embedding first.

    Without what is no parameter there.
    """
    stored = {path: each for path, each in model.stored.items() if each.kind != "buffer"}
    family = _family(model)
    bare = [leaf.name.removeprefix(family.prefix) for leaf in family.leaves.values()]
    order = {name: at for at, name in enumerate(bare)}
    return dict(
        sorted(stored.items(), key=lambda item: order[item[1].name.removeprefix(family.prefix)])
    )


def _name(stored: Any, model: Any, path: str, apart: bool) -> Name:
    """The torch name of a model's leaf; ``apart``: every expert has modules of its own."""
    if not (apart and stored.parts):
        return stored.name
    leaf: Any = model.params
    for key in path.split("/"):
        leaf = leaf[key]
    module = stored.name.rpartition(".")[0]
    width = leaf.shape[-1] // len(stored.parts)
    return {f"{module}.{{}}.{part}.weight": width for part in stored.parts}


def _leaf(path, value, braces, names, axes, kind, unclear) -> Leaf:
    shape = tuple(np.shape(value))
    its_axes, free = None, len(shape) - braces
    if axes is not None and path in axes:
        its_axes = axes[path]
    elif kind == "plain" and path.rpartition("/")[2] == "bias":
        pass  # one for each expert
    elif free == 2 or (free == 3 and kind in ("experts", "experts_as_ours")):
        last = len(shape) - 1
        its_axes = Axes(stack=tuple(range(last - 1)), inputs=(last - 1,), outputs=(last,))
    elif free > 2:
        unclear[path] = (
            f"{path} has shape {shape}: which dimensions are inputs and outputs can't be told. "
            "Pass axes=jlora.trace_axes(fn, params, *args)"
        )
    if kind is None:
        embeds = any(_EMBEDDING.search(name) for name in (path.rpartition("/")[2], *names))
    else:
        embeds = kind == "plain"
    return Leaf(path, shape, its_axes, braces, embeds and its_axes is not None, value)


def _split(name: str, leaf: Leaf, *, of_parameter: bool) -> tuple[str, str]:
    """A torch name as (module, parameter); a name of somebody's own may be of the module alone."""
    module, _, last = name.rpartition(".")
    if of_parameter or last in ("weight", "bias"):
        return module, last
    if len(leaf.stack) > leaf.layers:  # several matrices in one parameter
        return module, last
    return name, "bias" if leaf.path.rpartition("/")[2] in ("bias", "b", "beta") else "weight"


def _transposed(parts: list[Part], kinds: Mapping[str, str]) -> bool:
    return parts[0].leaf.embeds or kinds.get(parts[0].leaf.path) in _AS_OURS
