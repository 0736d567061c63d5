"""Where A and B live on a mesh: along the dimensions that they share with their weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jlora import _paths, _placement
from jlora._lora_dict import of_leaves
from jlora._lowrank import Dims
from jlora._node import Node
from jlora._quantised import QuantizedWeight, place_of


def shardings(tree: Any, lora: Mapping[str, Node], *, mesh: Any = None) -> dict[str, Node]:
    """A `jax.sharding.NamedSharding` for each leaf of ``lora``: as its weight's, the rank whole.

    A has the weight's layout on stack and input dimensions, B on stack and output dimensions;
    ``scaling`` is on every device. For ``jax.device_put(lora, ...)`` or jit's ``in_shardings``.

    Args:
        tree: the parameters (arrays laid out on a mesh), or a tree like them of NamedShardings or
            PartitionSpecs (`flax.linen.get_partition_spec`, `flax.nnx.get_partition_spec`).
        lora: the adapter (shapes are enough).
        mesh: the mesh that PartitionSpecs speak of; without it the one of `jax.set_mesh`.

    Returns:
        a tree of the structure of ``lora``.

    Raises:
        ValueError: when an adapted leaf is not there or does not say how it lies on a mesh.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((8, 4))}, config, jax.random.key(0))
        >>> mesh = jax.make_mesh((1,), ("model",), devices=jax.devices()[:1])
        >>> layout = {"kernel": jax.sharding.PartitionSpec(None, "model")}
        >>> its_layout = jlora.shardings(layout, lora, mesh=mesh)
        >>> tuple(its_layout["kernel"].b.spec)
        (None, 'model')
        >>> lora = jax.device_put(lora, its_layout)
    """
    leaves, _ = _paths.flatten(tree)
    placed, problems, its_mesh = {}, [], None
    for path, node in of_leaves(lora).items():
        try:
            sharding = _of_leaf(_found(path, leaves), mesh)
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        placed[path] = _of_node(node, sharding)
        its_mesh = sharding.mesh
    if problems:
        raise ValueError("no layout for the adapter:\n  " + "\n  ".join(problems))
    if its_mesh is not None:  # what several leaves share is on every device
        everywhere = NamedSharding(its_mesh, PartitionSpec())
        shared = {path: node for path, node in lora.items() if path not in placed}
        placed |= jax.tree.map(lambda _: everywhere, shared)
    return {path: placed[path] for path in lora}


def _found(path: str, leaves: Mapping[str, Any]) -> Any:
    """What stands at a path, or, in a tree that ends there, for all below (a box of Flax)."""
    while path and path not in leaves:
        path = path.rpartition("/")[0]
    return leaves.get(path)


def _of_leaf(leaf: Any, mesh: Any) -> NamedSharding:
    """How a leaf lies on a mesh.

    Raises:
        ValueError: where it does not say.
    """
    if isinstance(leaf, PartitionSpec):
        mesh = _current_mesh() if mesh is None else mesh
        if mesh is None:
            raise ValueError(f"{leaf} needs a mesh: give mesh=, or call it in jax.set_mesh(mesh)")
        return NamedSharding(mesh, leaf)
    sharding = leaf if isinstance(leaf, NamedSharding) else getattr(leaf, "sharding", None)
    if isinstance(leaf, QuantizedWeight):
        sharding = place_of(leaf)
    if _placement.traced(leaf) and not jax.typeof(leaf).sharding.mesh.empty:
        sharding = jax.typeof(leaf).sharding  # explicit axes are in its type
    if not isinstance(sharding, NamedSharding):
        came = "no such leaf" if leaf is None else type(sharding or leaf).__name__
        raise ValueError(f"expected a NamedSharding or a PartitionSpec, got {came}")
    known = _current_mesh()
    asked_outside = isinstance(sharding.mesh, AbstractMesh) and isinstance(known, Mesh)
    if asked_outside and known.abstract_mesh == sharding.mesh:  # of the shapes of what was traced
        return NamedSharding(known, sharding.spec)
    return sharding


def _current_mesh() -> Any:
    """The mesh of `jax.set_mesh`; within a traced function it is abstract; None where none is."""
    abstract = jax.sharding.get_abstract_mesh()
    if abstract.empty:
        return None
    try:
        return jax.sharding.get_mesh()
    except ValueError:  # JAX gives it outside of traced functions alone
        return abstract


def _of_node(node: Node, sharding: NamedSharding) -> Node:
    def along(dims: Dims) -> Any:
        spec = PartitionSpec(*_placement.layout_of(sharding.spec, dims))
        return NamedSharding(sharding.mesh, spec)

    return dataclasses.replace(
        node,  # type: ignore
        **{name: along(dims) for name, dims in node.dimensions().items()},
    )
