"""`load`: an adapter in the PEFT format as (lora, config)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jlora import _hub
from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._lowrank import Axes
from jlora._words import first_few
from jlora.peft import (
    _factors,
    _fields,
    _gguf,
    _names,
    _own_format,
    _read,
    _repeated_starts,
    _rows,
    _tied,
    _whole_leaves,
)
from jlora.peft._configuration import configuration
from jlora.peft._file import AdapterFile

_DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
_OF_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


def load(
    directory: str | Path,
    model: Any,
    *,
    names: _names.Names | None = None,
    axes: Mapping[str, Axes] | None = None,
    dtype: Any = None,
) -> tuple[Lora, LoraConfig]:
    """The pair (lora, config) of an adapter that PEFT, mlx-lm, llama.cpp or `save` wrote.

    ``jlora.merge(params, lora)`` is what PEFT's ``merge_and_unload`` makes of the same model. An
    adapter that was saved with the start ``pissa`` or ``olora`` becomes one of the original
    weights, as PEFT repeats its start on them: its rank is twice as large (`jlora.rebase`).

    Args:
        directory: a folder with ``adapter_config.json`` and ``adapter_model.safetensors`` (or
            mlx-lm's ``adapters.safetensors``), a hub id, or llama.cpp's ``.gguf`` file.
        model: a `jlora.models.Model`; or a tree of parameters, and ``names``.
        names: the torch module of each leaf, by its path: ``{"layers/q/kernel":
            "model.layers.{}.self_attn.q_proj"}``, or a function from the path to it (None: the
            leaf has none). ``{}`` stands for the layer of a stacked leaf, once for each of its
            first stack dimensions; further stack dimensions stand in one torch parameter, whose
            own name is then given (experts, as (experts, out, in)). A leaf that holds the outputs
            of several modules side by side has ``{module: outputs}`` for a name; leaves that are
            one module in torch have its one name, in the order of its outputs.
        axes: from `jlora.trace_axes`, for leaves that are no matrix beyond what ``{}`` counts.
        dtype: of A and B; that of the file unless given, float32 of a GGUF file.

    Returns:
        lora: the adapter of ``model``'s own parameters.
        config: the configuration that says the same.

    Raises:
        ValueError: when the files are missing or damaged, when the configuration asks for what
            jlora does not have, or when the tensors are not the model's: all of it named at once.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> names = {"kernel": "model.proj"}  # the module in torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.save(folder, lora, config, frozen, names=names)
        ...     lora, config = jlora.peft.load(folder, frozen, names=names)
        >>> lora["kernel"].a.shape, config.rank
        ((7, 2), 2)
    """
    directory = located(directory)
    dtype = None if dtype is None else jnp.dtype(dtype)
    if _gguf.is_one(directory):
        return _gguf.load(directory, model, dtype)
    if (method := _own_format.method_in(directory)) is not None:
        return _own_format.load(directory, method, model, names, axes, dtype)
    settings, tensors = _read.contents(directory)
    apart = any(_OF_ONE_EXPERT.search(name) for name in tensors)
    known = _names.layout(model, names, axes, apart=apart)
    file = AdapterFile(settings, tensors, known, dtype)
    lora = _nodes(file)
    if not any(node.targeted for node in lora.values()) and not file.problems:
        file.problems.append("no leaf is adapted: expected at least one lora_A and lora_B")
    if file.problems:
        raise ValueError(
            f"the adapter in {directory} does not fit the model:" + first_few(file.problems, 12)
        )
    if _repeated_starts.is_repeated(settings):
        lora, settings = _repeated_starts.of_original(settings, lora, known)
    return lora, configuration(settings, lora, known.leaves)


def located(source: str | Path) -> Path:
    """The adapter's folder, or its GGUF file; what is on the hub is fetched.

    Args:
        source: a folder, a ``.gguf`` file or a folder that holds ``adapter.gguf``, or a hub id
            (``owner/name@revision``).

    Raises:
        ValueError: when there is no such folder, or it can't be fetched.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.located(folder) == pathlib.Path(folder)
        True
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return _gguf.in_folder(directory) or directory
    if directory.is_file() and _gguf.is_one(directory):
        return directory
    if directory.exists() or not _hub.is_id(str(source)):
        raise ValueError(f"{directory} is no folder: expected one with {_fields.FILE}, or a hub id")
    try:
        return _hub.snapshot(str(source), _DOWNLOADED)
    except _hub.UnreachableError as error:
        raise ValueError(
            f"{str(source)!r} is no folder: expected one with {_fields.FILE}. As an adapter on the "
            f"Hugging Face hub it could not be fetched: {error}"
        ) from None


def describe(directory: str | Path) -> dict[str, Any]:
    """What ``adapter_config.json`` says, in PEFT's words, of all that jlora honours.

    Args:
        directory: a folder with ``adapter_config.json``, or a GGUF file, which says less.

    Raises:
        ValueError: when there is none, or when it asks for what jlora does not have.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.save(folder, lora, config, frozen, names={"kernel": "model.proj"})
        ...     told = jlora.peft.describe(folder)
        >>> told["r"], told["lora_alpha"]
        (2, 16)
    """
    directory = located(directory)
    return (_gguf if _gguf.is_one(directory) else _read).settings(directory)


def _nodes(file: AdapterFile) -> Lora:
    """The node of every leaf that the file has something of, in the order of the leaves."""
    layout = file.layout
    _tied.check(file)
    nodes = {**_factors.read(file), **_rows.read(file)}
    for path, node in _whole_leaves.read(file).items():
        if path in nodes:
            file.problems.append(
                f"{path} is adapted and saved whole as well: jlora has one node for a leaf"
            )
        nodes[path] = node
    for path, problem in layout.unclear.items():
        of_it = [n for n in file.left for p in layout.of_leaf(path) if p.owns(n)]
        file.problems += [problem] if of_it else []
        for name in of_it:
            file.take(name)
    file.problems += [f"{name}: not expected" for name in file.left]
    return {path: nodes[path] for path in layout.leaves if path in nodes}
