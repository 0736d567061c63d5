"""The layout of a torch model out of the names that our leaves have there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jlora import _paths
from jlora._lowrank import Axes
from jlora._words import first_few
from jlora.peft._layout import Layout, Leaf, Parameter, Part

# A torch name, or several with their outputs where one leaf holds them side by side.
Name = str | Mapping[str, int]
Names = Mapping[str, Name] | Callable[[str], Name | None]

HEAD = "lm_head"
_AS_OURS = ("conv1d", "experts_as_ours")  # kinds that torch keeps as (in, out)
_EMBEDDING = re.compile(r"embed|(^|[/.])(wte|wpe)($|[/.])")


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
    from jlora.models import TextModel

    kinds: Mapping[str, str] = {}
    parameters_alone: set[str] = set()
    turned: set[str] = set()
    ours = False  # whether each name is that of a parameter
    if known := isinstance(model, TextModel):
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
