"""What an adapter's folder says of the adapter without its arrays: ``adapter.json``, both ways.

Nothing in the file is computed: a pattern is read, and never matched.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jlora import _files, _paths, _sealed_json, _words
from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._node import Node
from jlora._registry import node_class
from jlora._static import from_json, static_fields, to_json
from jlora.checkpoint._fingerprint import checked, fingerprint

FILE = "adapter.json"
_FORMAT = "jlora-adapter"
VERSION, _OLDEST = 4, 2  # which jlora 0.1 wrote
_SEALED_SINCE = 4  # with a sum of its own
_KINDS_OF_VERSION_2 = {
    "LoraWeight": "lora",
    "DoraWeight": "dora",
    "WholeWeight": "whole",
    "BiasDelta": "bias",
    "TokenRows": "rows",
}


def describe(directory: str | Path) -> dict[str, Any]:
    """What ``adapter.json`` says: ``config``, ``leaves``, ``base``, ``metadata``; no array is read.

    Args:
        directory: the adapter's folder.

    Raises:
        ValueError: when the folder holds no adapter that this version of jlora can read.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.checkpoint.save(folder, lora, config, metadata={"steps": 100})
        ...     told = jlora.checkpoint.describe(folder)
        >>> told["metadata"], told["config"]["rank"], list(told["leaves"])
        ({'steps': 100}, 2, ['kernel'])
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder: expected one that jlora.checkpoint.save wrote")
    if not (directory / FILE).exists():
        names = sorted(entry.name for entry in directory.iterdir())
        raise ValueError(
            f"{directory} holds no adapter: {FILE} is missing. "
            f"It holds {_words.named(names) or 'nothing'}"
        )
    path = directory / FILE
    description = _files.read_json(path)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ValueError(f"{path} describes no jlora adapter")
    description = _sealed_json.opened(description, path, newest=VERSION, sealed_since=_SEALED_SINCE)
    if description["version"] < _OLDEST:
        raise ValueError(f"{path} is damaged: its version is {description['version']}")
    try:
        if description["version"] == 2:
            description = _since_version_2(description)
        base = description["base"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return {**description, "base": checked(base, str(path))}


def outline(directory: str | Path) -> tuple[Lora, LoraConfig]:
    """The pair that `restore` gives with ShapeDtypeStructs for arrays; no array is read.

    Args:
        directory: the adapter's folder.

    Raises:
        ValueError: when there is no adapter, or its description is damaged.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.checkpoint.save(folder, lora, config)
        ...     shapes, config = jlora.checkpoint.outline(folder)
        >>> shapes["kernel"].a.shape, config.rank
        ((7, 2), 2)
    """
    directory = Path(directory)
    description = describe(directory)
    try:
        lora = {path: _abstract_node(leaf) for path, leaf in description["leaves"].items()}
        config = LoraConfig(**description["config"])
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{directory / FILE} is damaged: {error!r}") from None
    return lora, config


def description_of(
    lora: Lora, config: LoraConfig, arrays: str, base: Any, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``adapter.json`` will say, but for the sums of the files."""
    return {
        "format": _FORMAT,
        "arrays": arrays,
        "config": _config_as_json(config, lora),
        "leaves": {path: _node_as_json(node) for path, node in lora.items()},
        "base": None if base is None else fingerprint(base),
        "metadata": dict(metadata),
    }


def sealed_arrays(directory: Path, description: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The name of the folder of arrays, and the sums of the files in it."""
    name, seal = description.get("arrays"), description.get("seal")
    if not isinstance(name, str) or not re.fullmatch(r"arrays-[0-9]+", name):
        raise ValueError(
            f"{directory / FILE} is damaged: its arrays are in {name!r}, expected a folder "
            "'arrays-NUMBER' beside it"
        )
    if not isinstance(seal, dict) or not seal:
        raise ValueError(f"{directory / FILE} is damaged: it has no sums of its arrays' files")
    return name, seal


def _since_version_2(description: dict[str, Any]) -> dict[str, Any]:
    """A description of jlora 0.1: kinds were called by their classes, a dropout rate was static."""
    leaves = {}
    for path, leaf in description["leaves"].items():
        static = dict(leaf["static"])
        rate = static.pop("dropout", 0.0)
        leaves[path] = {
            **leaf,
            "kind": _KINDS_OF_VERSION_2.get(leaf["kind"], leaf["kind"]),
            "static": static,
            "values": {"dropout": rate} if rate else {},
        }
    return {**description, "version": 3, "leaves": leaves}


def _config_as_json(config: LoraConfig, lora: Mapping[str, Node]) -> dict[str, Any]:
    """The configuration as JSON; a function in ``targets`` becomes the paths that it chose."""
    fields = dataclasses.asdict(config)
    if callable(config.targets):
        chosen = [path for path, node in lora.items() if node.targeted]
        fields["targets"] = [config.pattern_of(path) for path in chosen]
    return fields


def _node_as_json(node: Node) -> dict[str, Any]:
    arrays, _ = _paths.arrays(node)
    return {
        "kind": node.kind,
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in arrays.items()
        },
        "static": {name: to_json(getattr(node, name)) for name in static_fields(type(node))},
    }


def _abstract_node(leaf: Mapping[str, Any]) -> Node:
    arrays: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(tuple(array["shape"]), array["dtype"])
        for name, array in leaf["arrays"].items()
    }
    values = {name: np.float32(value) for name, value in leaf.get("values", {}).items()}
    static = {name: from_json(value) for name, value in leaf["static"].items()}
    return node_class(leaf["kind"])(**arrays, **values, **static)
