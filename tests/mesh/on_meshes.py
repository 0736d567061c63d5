"""Meshes of eight devices, what lies on them and how, and the check against one device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from laws import adapted, assert_close

import jlora

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit

# What `jax.make_mesh` gives where nothing is said of the axes' types: explicit ones.
MESHES = {
    "2x4": ((2, 4), ("data", "model"), None),
    "8": ((8,), ("model",), None),
    "2x4 auto": ((2, 4), ("data", "model"), (AUTO, AUTO)),
    "8 auto": ((8,), ("model",), (AUTO,)),
    "2 auto x 4": ((2, 4), ("data", "model"), (AUTO, EXPLICIT)),
    "2 x 4 auto": ((2, 4), ("data", "model"), (EXPLICIT, AUTO)),
}
# With axes of size 1, along which a dimension of any size may be split.
NARROW = {
    "1x8": ((1, 8), ("data", "model"), None),
    "8x1": ((8, 1), ("data", "model"), None),
    "1x1": ((1, 1), ("data", "model"), None),
}


def on_each(*names: str) -> Any:
    """The fixture ``on`` with other meshes than the usual ones."""
    return pytest.mark.parametrize("on", names, indirect=True)


OPTIONS = {"qalora": {"block": 8}}  # of methods that have some

USUAL = ("2x4", "8", "2x4 auto", "2 auto x 4")
ALL = on_each(*MESHES)
ONE_OF_EACH_KIND = on_each("2x4", "2x4 auto", "2 auto x 4")  # for what takes long


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh, or one device: how arrays lie there, and how a model says so.

    A layout names for each dimension the axis "data", "model", both in a tuple, or None; axes that
    the mesh has not are left out.
    """

    mesh: Any = None

    def spec(self, *layout: Any) -> P:
        """The layout with the axes of this mesh."""
        return self._of(layout, set(self.mesh.axis_names))

    def only(self, names: set[str], *layout: Any) -> P:
        """The layout along these axes alone."""
        return self._of(layout, names)

    def told(self, *layout: Any) -> P | None:
        """What a product's ``out_sharding`` may say: explicit axes; None where there are none."""
        return self._of(layout, self._typed(EXPLICIT)) if self._typed(EXPLICIT) else None

    def lay(self, x: jax.Array, *layout: Any) -> jax.Array:
        """In a model: the array laid out anew, along axes of either type."""
        if self._typed(EXPLICIT):
            x = jax.sharding.reshard(x, self.told(*layout))
        return self.constrain(x, *layout)

    def constrain(self, x: jax.Array, *layout: Any) -> jax.Array:
        """In a model: a hint how the array lies along automatic axes."""
        if not self._typed(AUTO):
            return x
        return jax.lax.with_sharding_constraint(x, self._of(layout, self._typed(AUTO)))

    def automatic(self, fn: Callable[..., Any], *layout: Any) -> Callable[..., Any]:
        """In a model: a part in which no axis is explicit, and the layout of what it gives."""
        if not self._typed(EXPLICIT):
            return fn
        return jax.sharding.auto_axes(fn, out_sharding=self.told(*layout))

    def put(self, tree: Any, layouts: Any) -> Any:
        """The tree on the mesh; ``layouts`` has a tuple for each leaf."""

        def place(leaf, layout):
            return jax.device_put(leaf, NamedSharding(self.mesh, self.spec(*layout)))

        return jax.tree.map(place, tree, layouts)

    def replicated(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def _typed(self, kind: AxisType) -> set[str]:
        if self.mesh is None:
            return set()
        pairs = zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
        return {name for name, its in pairs if its == kind}

    @staticmethod
    def _of(layout: tuple[Any, ...], names: set[str]) -> P:
        def entry(named):
            kept = [n for n in (named if isinstance(named, tuple) else (named,)) if n in names]
            return None if not kept else kept[0] if len(kept) == 1 else tuple(kept)

        return P(*map(entry, layout))


ONE = Devices()


@functools.cache
def devices(name: str) -> Devices:
    """The mesh of this name."""
    shape, names, types = (MESHES | NARROW)[name]
    return Devices(jax.make_mesh(shape, names, axis_types=types))


# How an adapter comes to the mesh, beside weights that lie there.
LAYOUTS: dict[str, Callable[[Devices, Any, Any], Any]] = {
    "where split left it": lambda on, frozen, lora: lora,
    "replicated": lambda on, frozen, lora: on.replicated(lora),
    "as its weights": lambda on, frozen, lora: jax.device_put(lora, jlora.shardings(frozen, lora)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A function of parameters and arrays, and how all of it lies on a mesh."""

    model: Callable[[Devices], Callable[..., Any]]  # made for the devices that it runs on
    params: dict[str, jax.Array]
    layouts: dict[str, tuple[Any, ...]]
    args: tuple[jax.Array, ...]
    arg_layouts: tuple[tuple[Any, ...], ...]
    axes: dict[str, jlora.Axes] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the adapter

    @functools.cache  # noqa: B019 - a case lives as long as its module
    def adapter(self, method: str = "lora", fresh: bool = False) -> tuple[Any, Any]:
        """(frozen, lora) on one device: fresh, or trained for a while."""
        own = {"method": method, "options": OPTIONS.get(method, {})}
        options = {"targets": ".", "rank": 4, "alpha": 6.0, **own} | self.options
        if not fresh:
            return adapted(self.params, self.axes, **options)
        config = jlora.LoraConfig(**options)
        return jlora.split(self.params, config, jax.random.key(0), axes=self.axes)

    @functools.cache  # noqa: B019
    def expected(self, method: str = "lora", fresh: bool = False) -> Any:
        """Outputs and gradients of the merged program on one device."""
        frozen, lora = self.adapter(method, fresh)
        model = self.model(ONE)

        def merged(frozen, lora, *args):
            return model(jlora.merge(frozen, lora), *args)

        return jax.tree.map(np.asarray, jax.jit(graded(merged))(frozen, lora, *self.args))

    def placed(self, on: Devices, frozen: Any) -> tuple[Any, tuple[Any, ...]]:
        """The frozen tree and the arrays on the mesh."""
        return on.put(frozen, self.layouts), on.put(self.args, self.arg_layouts)

    def check(
        self,
        on: Devices,
        *,
        method: str = "lora",
        fresh: bool = False,
        layout: str = "as its weights",
    ) -> None:
        """Lifted and jitted on the mesh, it gives what the merged program gives on one device.

        In values, and in gradients with respect to the adapter.
        """
        want = self.expected(method, fresh)
        frozen, lora = self.adapter(method, fresh)
        frozen, args = self.placed(on, frozen)
        lora = LAYOUTS[layout](on, frozen, lora)
        model = self.model(on)
        with jax.set_mesh(on.mesh):
            try:
                got = jax.jit(graded(jlora.lift(model, strict=True)))(frozen, lora, *args)
            except Exception:
                check_runs(model, frozen, *args)
                raise
        assert_close(got, want, 1e-4)

    def check_dropout(self, on: Devices) -> None:
        """With dropout it gives on the mesh what it gives on one device, lifted there too."""
        frozen, lora = adapted(self.params, self.axes, rank=4, dropout=0.5)
        key = jax.random.key(7)
        lifted = jax.jit(graded(jlora.lift(self.model(ONE), strict=True)))
        want = lifted(frozen, lora, *self.args, dropout_key=key)
        whole = lifted(frozen, lora, *self.args)
        assert not np.allclose(want[0], whole[0], atol=1e-3)
        placed, args = self.placed(on, frozen)
        followed = jax.device_put(lora, jlora.shardings(placed, lora))
        with jax.set_mesh(on.mesh):
            lifted = jax.jit(graded(jlora.lift(self.model(on), strict=True)))
            got = lifted(placed, followed, *args, dropout_key=key)
        assert_close(got, want, 1e-4)


def check_runs(model: Callable[..., Any], params: Any, *args: Any) -> None:
    """The model itself has values and gradients on the mesh, where its adapter has none."""
    try:
        jax.jit(graded(lambda _, params, *args: model(params, *args)))(None, params, *args)
    except Exception as error:
        raise AssertionError("the model without adapters does not run on this mesh") from error


def graded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn(frozen, lora, *args)`` and the gradient of a sum that tells its results apart."""

    def loss(lora, frozen, *args, **kwargs):
        outputs = fn(frozen, lora, *args, **kwargs)
        return sum(map(weighted, jax.tree.leaves(outputs))), outputs

    def run(frozen, lora, *args, **kwargs):
        (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(lora, frozen, *args, **kwargs)
        return outputs, grads

    return run


def weighted(x: jax.Array) -> jax.Array:
    """The sum of the entries, each with a weight of its own."""
    return (x * np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype)).sum()


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(seed), shape)


def assert_equal(got: Any, want: Any) -> None:
    """Two trees are alike, bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    named = jax.tree_util.tree_leaves_with_path(got)
    for (path, one), other in zip(named, jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(
            np.asarray(one), np.asarray(other), err_msg=jax.tree_util.keystr(path)
        )
