"""Where a model lies on a mesh: its weights, its adapter, its activations and its batches."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jlora import _placement, _words
from jlora._frozen_leaf import has_frozen_leaf
from jlora._lift import lift
from jlora._lowrank import RANK
from jlora._quantised import QuantizedWeight, places_of
from jlora._sharding import shardings
from jlora.models._families._layout_rules import weight_axes
from jlora.models._mesh import DATA, FSDP, MODEL
from jlora.models._net import _laid_out

_MEANING = {
    DATA: "rows of a batch, weights whole",
    FSDP: "rows of a batch, weights cut",
    MODEL: "heads, MLPs and the vocabulary",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where weights, adapter, activations and batches of a model lie on a mesh.

    The axes of the mesh say by their names what is cut along them; any of them may be missing:

    - ``data``: the rows of a batch; each device along it has all weights.
    - ``fsdp``: the rows of a batch, and the weights, which are gathered a layer at a time.
    - ``model``: heads, the width inside MLPs, and the vocabulary: devices along it share the work
      on the same rows.

    What an axis does not divide is whole along it: rows, a number of heads, a width. (As FSDP,
    Zhao et al. 2023, arXiv 2304.11277; Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053.)

    Args:
        mesh: of devices. Axes of any type: a model computes with automatic ones.
        rules: (pattern, PartitionSpec) for weights that shall lie otherwise: the first whose
            pattern is found in a weight's path says how all of its dimensions lie.
        small: bytes of a factor of the adapter; a smaller one is whole along ``fsdp`` where the
            dimensions that it shares with its weight are. A larger one is cut there.

    Raises:
        ValueError: when the mesh has other axes, or a rule speaks of an axis that it has not.

    Example:
        >>> import jax
        >>> from jlora import models
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1])
        >>> layout = models.Layout(mesh)
        >>> layout.parts, layout.whole.is_fully_replicated
        (1, True)
    """

    mesh: Mesh
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    small: int = 2**20

    def __post_init__(self) -> None:
        names = self.mesh.axis_names
        if unknown := [str(name) for name in names if name not in _MEANING]:
            known = ", ".join(f"{name} ({meaning})" for name, meaning in _MEANING.items())
            raise ValueError(f"a mesh with the axes {', '.join(unknown)}: expected some of {known}")
        for pattern, spec in self.rules:
            axes = [axis for entry in spec for axis in _placement.axes_of(entry)]
            if absent := [axis for axis in axes if axis not in names]:
                raise ValueError(
                    f"the rule {pattern!r} names the axis {absent[0]!r}: the mesh has "
                    f"{', '.join(map(str, names))}"
                )

    @property
    def parts(self) -> int:
        """Into how many parts a batch is cut."""
        return math.prod(self.mesh.shape[axis] for axis in self._of_rows)

    @property
    def rows(self) -> NamedSharding:
        """How the arrays of a batch lie, whose first dimension is its rows."""
        return self._on(PartitionSpec(self._of_rows or None))

    @property
    def whole(self) -> NamedSharding:
        """How an array lies that is whole on every device."""
        return self._on(PartitionSpec())

    def weights(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """A NamedSharding for each weight.

        Args:
            config: the model's.
            shapes: of the weights, by path, as `expected_shapes` gives them.

        Raises:
            ValueError: when a rule is for no weight, or does not divide one.
        """
        found, used, problems = {}, set(), []
        for path, shape in shapes.items():
            pattern, spec = self._rule(config, path, shape)
            used.add(pattern)
            found[path] = self._on(spec)
            try:
                found[path].shard_shape(shape)
            except ValueError:
                problems.append(f"{path} of shape {shape} can't be cut as {spec}")
        problems += [f"no weight is called {each!r}" for each, _ in self.rules if each not in used]
        if problems:
            sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
            listed = _words.first_few(problems, 8)
            raise ValueError(f"the layout's rules on the mesh {sizes}:{listed}")
        return found

    def of_adapter(self, frozen: Any, lora: Any) -> Any:
        """A NamedSharding for each leaf of the adapter: as its weight, and no large one whole.

        Args:
            frozen: the weights that it adapts, on the mesh, or a tree of their shardings.
            lora: the adapter; shapes are enough.
        """
        placed = shardings(frozen, lora)
        if FSDP not in self.mesh.axis_names:
            return placed
        return {path: self._cut(node, placed[path]) for path, node in lora.items()}

    def gathered(self, config: Any, weights: Any) -> Any:
        """In a model: some of its weights, whole along ``fsdp``, as a product needs them.

        The compiler gathers a weight before each product; in a loop that is once a turn, and before
        the loop once.

        Args:
            config: the model's.
            weights: a part of its parameters, as a tree.
        """
        flat: Any = flax.traverse_util.flatten_dict(weights, sep="/")
        for path, leaf in flat.items():
            _, spec = self._rule(config, path, leaf.shape)
            entries = [*spec, *[None] * (leaf.ndim - len(spec))]
            kept = [
                tuple(axis for axis in _placement.axes_of(entry) if axis != FSDP) or None
                for entry in entries
            ]
            flat[path] = _laid_out.constrained(leaf, self.mesh, kept)
        return flax.traverse_util.unflatten_dict(flat, sep="/")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """In the block the nets lay their activations out so."""
        axes: _laid_out.Axes = {
            _laid_out.ROWS: self._of_rows,
            _laid_out.MODEL: self._present(MODEL),
            _laid_out.REPLICAS: self._present(DATA),
            _laid_out.WIDTH: self._present(FSDP),
        }
        with _laid_out.laid_out_on(self.mesh, axes):
            yield

    def _rule(
        self, config: Any, path: str, shape: tuple[int, ...]
    ) -> tuple[str | None, PartitionSpec]:
        """(the pattern of the rule of one's own for a weight, if there is one, how it lies)."""
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                return pattern, spec
        entries: list[Any] = [None] * len(shape)
        for at, (names, units) in enumerate(reversed(weight_axes(path, config)), start=1):
            size = math.gcd(shape[-at], units) if units else shape[-at]
            entries[-at] = _laid_out.fitting(size, self._present(*names), self.mesh)
        return None, PartitionSpec(*entries)

    def _cut(self, node: Any, placed: Any) -> Any:
        """The node's shardings, with large factors cut along fsdp."""
        changed = {}
        for name, dims in node.dimensions().items():
            field, sharding = getattr(node, name), getattr(placed, name)
            entries = [*sharding.spec, *[None] * (len(dims) - len(sharding.spec))]
            taken = {axis for entry in entries for axis in _placement.axes_of(entry)}
            if FSDP in taken or math.prod(field.shape) * field.dtype.itemsize < self.small:
                continue
            # the last: first come those of stacks
            for at in reversed([at for at, dim in enumerate(dims) if dim != RANK]):
                axes = (*_placement.axes_of(entries[at]), FSDP)
                if _laid_out.fitting(field.shape[at], axes, self.mesh) == axes:
                    entries[at] = axes
                    changed[name] = self._on(PartitionSpec(*entries))
                    break
        return dataclasses.replace(placed, **changed)

    def _present(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.mesh.axis_names)

    @property
    def _of_rows(self) -> tuple[str, ...]:
        return self._present(DATA, FSDP)

    def _on(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)


def computed(layout: Layout | None, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A net's function of (params, ...), as it computes where the layout says.

    Parameters that are kept in a few bits are decoded where they are used.
    """

    def decoding(params: Any, *args: Any) -> Any:
        return lift(fn)(params, {}, *args) if has_frozen_leaf(params) else fn(params, *args)

    if layout is None:
        return decoding

    def on_its_mesh(*args: Any) -> Any:
        with layout.active():
            return _laid_out.automatic(decoding)(*args)

    return on_its_mesh


def laid_out(layout: Layout | None, config: Any, params: Any) -> Any:
    """A model's parameters, or their shapes, where the layout says; as they are without one.

    Raises:
        ValueError: where it would cut the blocks of a quantised weight: each is named.
    """
    if layout is None:
        return params
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    places = layout.weights(config, {path: leaf.shape for path, leaf in flat.items()})
    problems = []
    for path, leaf in flat.items():
        try:
            flat[path] = put(leaf, places[path])
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError(f"quantised weights on this mesh:{_words.first_few(problems, 8)}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def put(leaf: Any, place: NamedSharding) -> Any:
    """A weight, or its shape, at its place.

    Raises:
        ValueError: where a place would cut a quantised weight's blocks.
    """
    if isinstance(leaf, QuantizedWeight):
        return jax.tree.map(put, leaf, places_of(leaf, place))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.update(sharding=place)
    return _placement.placed(leaf, place)


def layout_of(mesh: Mesh | Layout | None) -> Layout | None:
    """The layout on a mesh, or the one that is given."""
    return mesh if mesh is None or isinstance(mesh, Layout) else Layout(mesh)
