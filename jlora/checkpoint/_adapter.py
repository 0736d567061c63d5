"""A finished adapter in a folder: factors through Orbax, everything else in one JSON file.

The folder holds ``adapter.json`` and the folder of arrays that it names. The JSON is written last
and in one step, so it never speaks of arrays that are not there: a save that breaks off leaves what
was there before. It has a sum of its own and those of the arrays' files: what was changed is not
read. Nothing in it is computed: a pattern is read, and never matched.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jlora import _files, _paths, _placement, _sealed_json, _together, _words
from jlora._config import LoraConfig
from jlora._lora_dict import Lora, check, check_is_adapter, of_leaves, shared_of
from jlora._node import Node
from jlora._registry import node_class
from jlora._sharding import shardings as shardings_of
from jlora._static import from_json, static_fields, to_json
from jlora.checkpoint import _arrays
from jlora.checkpoint._fingerprint import checked, differences, fingerprint

_FILE = "adapter.json"
_FORMAT = "jlora-adapter"
_VERSION, _OLDEST = 4, 2  # which jlora 0.1 wrote
_SEALED_SINCE = 4  # with a sum of its own
_KINDS_OF_VERSION_2 = {
    "LoraWeight": "lora",
    "DoraWeight": "dora",
    "WholeWeight": "whole",
    "BiasDelta": "bias",
    "TokenRows": "rows",
}


def save(
    directory: str | Path,
    lora: Lora,
    config: LoraConfig,
    *,
    base: Any = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the adapter alone: its factors, its configuration and its base's fingerprint.

    Args:
        directory: a new or an empty folder; with ``overwrite`` one that holds an adapter, which
            stays whole until the new one is complete, or other files, which stay.
        lora: from `split`.
        config: the configuration it was split with.
        base: the frozen tree. `restore` then refuses to put the adapter on another.
        metadata: anything JSON can hold, for `describe` to give back.
        overwrite: replaces an adapter in the folder, or saves beside other files.

    Raises:
        ValueError: when the folder holds something, or the adapter does not fit its configuration
            or its base, or the metadata is nothing that JSON can hold.
        OSError: when the files can't be written; what was there stays.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.checkpoint.save(folder, lora, config, base=frozen)
        ...     again, config = jlora.checkpoint.restore(folder, base=frozen)
        >>> bool((again["kernel"].a == lora["kernel"].a).all())
        True
    """
    directory = Path(directory)
    check_is_adapter(lora)
    if not lora:
        raise ValueError("the adapter is empty: expected at least one adapted leaf")
    _check_factors(lora)
    _check_ranks(lora, config)
    if base is not None:
        check(base, lora)
    previous = _together.by_first(
        f"looking into {directory}", lambda: sorted(_what_is_there(directory, overwrite))
    )
    number = 1 + max((int(re.sub(r"\D", "", name)) for name in previous), default=0)
    arrays, _ = _paths.arrays(lora)
    arrays_name = f"arrays-{number}"
    description = {
        "format": _FORMAT,
        "arrays": arrays_name,
        "config": _describe_config(config, lora),
        "leaves": {path: _describe_node(node) for path, node in lora.items()},
        "base": None if base is None else fingerprint(base),
        "metadata": dict(metadata or {}),
    }
    try:
        json.dumps(description, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # half a character, too
        raise ValueError(f"the metadata can't be written as JSON: {error}") from None
    directory.mkdir(parents=True, exist_ok=True)
    _arrays.write(directory / arrays_name, arrays)

    def complete() -> None:
        description["seal"] = _arrays.seal(directory / arrays_name)
        _files.sync(directory / arrays_name)
        _sealed_json.write(directory / _FILE, description, version=_VERSION)
        for name in previous:
            shutil.rmtree(directory / name, ignore_errors=True)

    _together.by_first(f"saving {directory}", complete)


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
    arrays_name, seal = _sealed_arrays(directory, description)
    if base is not None and description["base"] is not None:
        _check_base(directory, description["base"], base, lora)
    _check_factors(lora)
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
        raise ValueError(f"{directory / _FILE} is damaged: {error!r}") from None
    return lora, config


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
    if not (directory / _FILE).exists():
        names = sorted(entry.name for entry in directory.iterdir())
        raise ValueError(
            f"{directory} holds no adapter: {_FILE} is missing. "
            f"It holds {_words.named(names) or 'nothing'}"
        )
    path = directory / _FILE
    description = _files.read_json(path)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ValueError(f"{path} describes no jlora adapter")
    description = _sealed_json.opened(
        description, path, newest=_VERSION, sealed_since=_SEALED_SINCE
    )
    if description["version"] < _OLDEST:
        raise ValueError(f"{path} is damaged: its version is {description['version']}")
    try:
        if description["version"] == 2:
            description = _since_version_2(description)
        base = description["base"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return {**description, "base": checked(base, str(path))}


def _sealed_arrays(directory: Path, description: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The name of the folder of arrays, and the sums of the files in it."""
    name, seal = description.get("arrays"), description.get("seal")
    if not isinstance(name, str) or not re.fullmatch(r"arrays-[0-9]+", name):
        raise ValueError(
            f"{directory / _FILE} is damaged: its arrays are in {name!r}, expected a folder "
            "'arrays-NUMBER' beside it"
        )
    if not isinstance(seal, dict) or not seal:
        raise ValueError(f"{directory / _FILE} is damaged: it has no sums of its arrays' files")
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


def _what_is_there(directory: Path, overwrite: bool) -> list[str]:
    """The folders of arrays to replace, once it is clear that nothing else is in danger."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: expected a folder to save the adapter in")
    names = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    arrays = [name for name in names if re.fullmatch(r"arrays-\d+", name)]
    # What a save that broke off leaves behind is nobody's work.
    unfinished = [name for name in names if name.startswith(("arrays-", f".{_FILE}"))]
    if _FILE in names and not overwrite:
        raise ValueError(f"{directory} already holds an adapter: overwrite=True replaces it")
    if set(names) - set(unfinished) and not overwrite:
        raise ValueError(
            f"{directory} holds other files ({_words.named(sorted(names))}): choose a new folder, "
            "or overwrite=True to save beside them"
        )
    return arrays


def _check_base(directory: Path, expected: Mapping[str, Any], base: Any, lora: Lora) -> None:
    """What the adapter replaces may be another, as a fresh head is that begins at random."""
    found = fingerprint(base)
    expected, found = (
        {path: leaf for path, leaf in each.items() if path not in lora or not lora[path].replaces}
        for each in (expected, found)
    )
    if lines := differences(expected, found):
        raise ValueError(
            f"{directory} was trained on another base than the one given. "
            f"{_other_level(expected, found)}Of "
            f"{len(expected.keys() | found.keys())} leaves {len(lines)} differ:"
            f"{_words.first_few(lines)}"
        )


def _other_level(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A sentence where one tree is a branch of the other, as linen's params of its variables."""
    for small, large, words in (
        (expected, found, "The base is the branch {!r} of the tree given. "),
        (found, expected, "The tree given is the branch {!r} of the base. "),
    ):
        first = next(iter(small), "")
        for path in large:
            branch = path.removesuffix(f"/{first}")
            if branch != path and all(f"{branch}/{name}" in large for name in small):
                return words.format(branch)
    return ""


def _check_factors(lora: Mapping[str, Node]) -> None:
    shared = shared_of(lora)
    misfits = {path: node.misfit(node.shape, shared) for path, node in of_leaves(lora).items()}
    if problems := [f"{path}: {problem}" for path, problem in misfits.items() if problem]:
        raise ValueError(f"the factors do not fit each other:{_words.first_few(problems)}")


def _check_ranks(lora: Mapping[str, Node], config: LoraConfig) -> None:
    problems = []
    for path, node in of_leaves(lora).items():
        if not node.targeted:
            continue
        ranks = config.ranks_for(path)
        if node.rank not in (ranks if isinstance(ranks, tuple) else (ranks,)):
            problems.append(f"{path}: it has rank {node.rank}, the configuration says {ranks}")
    if problems:
        raise ValueError(
            f"the factors are not those of the configuration:{_words.first_few(problems)}"
        )


def _describe_config(config: LoraConfig, lora: Mapping[str, Node]) -> dict[str, Any]:
    """The configuration as JSON; a function in ``targets`` becomes the paths that it chose."""
    fields = dataclasses.asdict(config)
    if callable(config.targets):
        chosen = [path for path, node in lora.items() if node.targeted]
        fields["targets"] = [config.pattern_of(path) for path in chosen]
    return fields


def _describe_node(node: Node) -> dict[str, Any]:
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


def _beside(leaves: Mapping[str, Any], lora: Lora) -> Any:
    """The adapter's layout, where each of its leaves lies on a mesh; else None."""
    places = [getattr(leaves[path], "sharding", None) for path in of_leaves(lora)]
    on_a_mesh = places and all(isinstance(place, jax.sharding.NamedSharding) for place in places)
    return shardings_of(leaves, lora) if on_a_mesh else None


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
