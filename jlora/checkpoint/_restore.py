"""How an adapter comes back out of its folder, and where its arrays go.

What was changed since it was saved is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jlora import _paths, _placement, _words
from jlora._config import LoraConfig
from jlora._lora_dict import Lora, check, of_leaves
from jlora._quantised import QuantizedWeight, place_of
from jlora._sharding import shardings as shardings_of
from jlora.checkpoint import _arrays
from jlora.checkpoint._checks import check_base, check_factors
from jlora.checkpoint._description import describe, outline, sealed_arrays


def restore(
    directory: str | Path, *, base: Any = None, shardings: Any = None
) -> tuple[Lora, LoraConfig]:
    """The pair (lora, config) that `save` wrote, its arrays bit for bit.

    Args:
        directory: the adapter's folder.
        base: the frozen tree that it is to work on, which must be the one that it was saved with.
        shardings: where the arrays go: one `jax.sharding.Sharding` for all, or a tree of them in
            the structure of the adapter. Unless given, beside a base that lies on a mesh as
            `jlora.shardings` says, and else on the first device.

    Returns:
        lora: as it was saved.
        config: the configuration that it was split with.

    Raises:
        ValueError: when there is no adapter, when it is damaged, or when the base is another:
            everything that differs is named.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.checkpoint.save(folder, lora, config, base=frozen)
        ...     lora, config = jlora.checkpoint.restore(folder, base=frozen)
        >>> lora["kernel"].a.shape, config.rank
        ((7, 2), 2)
    """
    directory = Path(directory)
    description = describe(directory)
    lora, config = outline(directory)
    arrays_name, seal = sealed_arrays(directory, description)
    if base is not None and description["base"] is not None:
        check_base(directory, description["base"], base, lora)
    check_factors(lora)
    if base is not None:
        leaves, _ = check(base, lora)
        shardings = _beside(leaves, lora) if shardings is None else shardings
    abstract, structure = _paths.arrays(lora)
    places = _places(abstract, shardings)
    expected = {
        path: _arrays.abstract(leaf.shape, leaf.dtype, places[path])
        for path, leaf in abstract.items()
        if isinstance(leaf, jax.ShapeDtypeStruct)  # else its value stands in the JSON
    }
    sealed = _arrays.seal(directory / arrays_name)
    names = sorted(seal.keys() | sealed.keys())
    if damaged := [name for name in names if sealed.get(name) != seal.get(name)]:
        raise ValueError(
            f"{directory / arrays_name} is damaged, these files are missing, changed or new: "
            + _words.named(damaged)
        )
    arrays = _arrays.read(directory / arrays_name, expected)
    found = [
        arrays[path] if path in arrays else _placement.placed(leaf, places[path])
        for path, leaf in abstract.items()
    ]
    return jax.tree.unflatten(structure, found), config


def _beside(leaves: Mapping[str, Any], lora: Lora) -> Any:
    """The adapter's layout, where each of its leaves lies on a mesh; else None."""
    places = [_place(leaves[path]) for path in of_leaves(lora)]
    on_a_mesh = places and all(isinstance(place, jax.sharding.NamedSharding) for place in places)
    return shardings_of(leaves, lora) if on_a_mesh else None


def _place(leaf: Any) -> Any:
    return place_of(leaf) if isinstance(leaf, QuantizedWeight) else getattr(leaf, "sharding", None)


def _places(abstract: Mapping[str, Any], shardings: Any) -> Mapping[str, Any]:
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(abstract, shardings)
    places, _ = _paths.arrays(shardings)
    if lacking := [path for path in abstract if path not in places]:
        raise ValueError(
            f"shardings have no place for {_words.named(lacking)}: expected one Sharding, or a "
            "tree of them in the adapter's structure"
        )
    return places
