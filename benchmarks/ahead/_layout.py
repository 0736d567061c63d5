"""Where each parameter of a llama lies on a mesh: one rule for each kind."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FSDP, TENSOR = "fsdp", "tensor"

# chips that share activations, where there are so many
SHARING = {"1B": 1, "8B": 2, "70B": 4}

# (pattern, how the leaf's dimensions lie): each weight is cut along both axes of the mesh, and
# between the two products of attention and MLP activations stay cut along the tensor axis.
RULES = (
    (r"^embed/embedding$", PartitionSpec(TENSOR, FSDP)),  # (vocabulary, width)
    (r"/(q|k|v|gate|up)_proj/kernel$", PartitionSpec(None, FSDP, TENSOR)),  # (layers, in, out)
    (r"/(o|down)_proj/kernel$", PartitionSpec(None, TENSOR, FSDP)),
    (r"^head/kernel$", PartitionSpec(FSDP, TENSOR)),  # (width, vocabulary)
    (r"norm/scale$", PartitionSpec()),
)


def mesh_of(devices: Sequence[Any], tensor: int) -> Mesh:
    """All devices, ``tensor`` of them in each group that shares activations."""
    return Mesh(np.array(devices).reshape(-1, tensor), (FSDP, TENSOR))


def spec_of(path: str) -> PartitionSpec:
    """The one rule that finds this path.

    Raises:
        ValueError: when none does, or several.
    """
    found = [(pattern, spec) for pattern, spec in RULES if re.search(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one rule, found {[pattern for pattern, _ in found]}")
    return found[0][1]


def shardings_of(params: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf."""

    def of(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name))

    return jax.tree_util.tree_map_with_path(of, params)


def placed(shapes: Any, shardings: Any) -> Any:
    """The ShapeDtypeStructs, laid out so."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
