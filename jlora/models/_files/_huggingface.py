"""A model out of a Hugging Face folder, or of a repository on the hub."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jlora import _hub, _words
from jlora._files import read_json_object, require_regular
from jlora._safetensors import Header
from jlora._wrapped_names import bare
from jlora.models import _families
from jlora.models._files import (
    _own_tokenizer,
    _quantised_tensors,
    _tensor_names,
    _weight_files,
)
from jlora.models._files._left_over import left_over
from jlora.models._files._shards import DTYPES
from jlora.models._files._stacking import Opened, expected_shapes
from jlora.models._files._tensor import Tensor, as_it_lies
from jlora.models._net._config import DecoderConfig

# What older files hold beside the parameters: rotary frequencies, causal masks, places.
_BUFFERS = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|embeddings\.(position|token_type)_ids$"
)
# Formats of one byte that numpy has no name for are read as bytes.
_STORED = {
    **DTYPES,
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    **dict.fromkeys(("U8", "F8_E4M3", "F8_E8M0"), np.dtype(np.uint8)),
}
_DESCRIPTION = ("*.json", "*.jinja", "tokenizer.model")
_DOWNLOADED = (*_DESCRIPTION, "*.safetensors")
_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def download(hub_id: str) -> Path:
    """The local folder of a model on the hub; fetches what is not there yet.

    Raises:
        ValueError: when the hub can't be reached or has no such model.
    """
    return _fetched(hub_id, _DOWNLOADED)


def described(hub_id: str) -> Path:
    """The local folder of a model on the hub without its weights.

    Raises:
        ValueError: as `download`.
    """
    return _fetched(hub_id, _DESCRIPTION)


def opened_remotely(hub_id: str) -> Opened:
    """A model on the hub whose weights are not fetched: their headers alone are read there.

    Where the hub can't be asked, the headers are those of files that were fetched before.

    Raises:
        ValueError: as `opened`.
    """
    directory = described(hub_id)
    try:
        return opened(directory, tensors=_hub.headers(hub_id))
    except _hub.UnreachableError:
        return opened(directory)


def opened(directory: Path, *, tensors: Mapping[str, Header] | None = None) -> Opened:
    """A folder with config.json, a tokenizer and safetensors.

    Args:
        directory: the folder.
        tensors: the headers of the weights, where they are not in it.

    Raises:
        ValueError: when a file is missing, broken, or of a model that jlora does not know.
    """
    where = str(directory)
    for name in _TEXTS:
        if (directory / name).exists():
            require_regular(directory / name)
    if not (directory / "config.json").exists():
        raise ValueError(_no_model(directory))
    settings = read_json_object(directory / "config.json")
    config = _families.from_huggingface(settings, f"{directory / 'config.json'}")
    family = _families.family_of(config.family, where)
    writes = isinstance(config, DecoderConfig)
    tokenizer = _own_tokenizer.of_folder(directory, family.flat(settings), writes=writes)
    found = _weight_files.tensors_of(directory) if tensors is None else tensors
    named = _by_family(found, family, where)
    shapes = {name: tensor.shape for name, (_, tensor) in named.items()}
    there = {field: family.leaves[path].name in shapes for field, path in family.by_tensors.items()}
    config = _with(config, there, directory)
    beside = (*family.beside(family.flat(settings), config.layers), *family.heads_aside)
    aside = _aside(shapes, beside, family, config)
    ignored = {*aside, *(name for name in shapes if _BUFFERS.search(name))}
    ignored |= left_over(family.leaves, config)
    head = family.leaves["head/kernel"].name if config.tied else None

    def tensor(name: str) -> Tensor:
        _, its = named[name]
        return as_it_lies(its.file, its.start, its.shape, _STORED[its.dtype])

    def dtype(name: str) -> np.dtype:
        return _dtype(*named[name])

    opened = Opened(
        config=config,
        tokenizer=tokenizer,
        leaves=family.leaves,
        shapes=shapes,
        tensor=tensor,
        dtype=dtype,
        ignored=ignored | ({head} if head in shapes else set()),
        where=where,
        second_head=head if head in shapes else None,
        told=_told(where, aside, beside, family.read_alone),
        aside=aside,
    )
    return _quantised_tensors.dequantised(opened, named, settings.get("quantization_config"))


def _fetched(hub_id: str, patterns: Sequence[str]) -> Path:
    try:
        return _hub.snapshot(hub_id, patterns)
    except _hub.UnreachableError as error:
        raise ValueError(
            f"{hub_id!r} is no file or folder here, and as a model on the Hugging Face hub it "
            f"could not be fetched: {error}"
        ) from None


def _by_family(
    tensors: Mapping[str, Header], family: _families.Family, where: str
) -> dict[str, tuple[str, Header]]:
    """The tensors by the family's names for them: each with its own name."""
    names = _tensor_names.of_family(tensors, family)
    if twice := [" and ".join(each) for each in names.values() if len(each) > 1]:
        raise ValueError(
            f"{where} holds the same parameter under two names: remove one of them"
            f"{_words.first_few(twice, 8)}"
        )
    return {name: (own, tensors[own]) for name, [own] in names.items()}


def _dtype(name: str, tensor: Header) -> np.dtype:
    """The dtype in which a tensor's weights are kept.

    Raises:
        ValueError: when it holds no floats: numbers without their scales are no weights.
    """
    known = {**DTYPES, "F64": np.dtype(np.float32)}  # what JAX makes of it
    if tensor.dtype not in known:
        raise ValueError(
            f"{tensor.file.name}: {name} is of dtype {tensor.dtype}, expected one of "
            f"{', '.join(known)}: get the model in bfloat16"
        )
    return known[tensor.dtype]


def _with(config: Any, there: Mapping[str, bool], directory: Path) -> Any:
    """The configuration with what only the tensors say."""
    try:
        return dataclasses.replace(config, **there) if there else config
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _aside(
    names: Iterable[str], beside: tuple[str, ...], family: _families.Family, config: Any
) -> list[str]:
    """The tensors that are no part of this model of the family's."""
    found = [name for name in names if bare(name).startswith(beside)]
    if not found:
        return []
    own = {family.leaves[path].name for path in expected_shapes(config) if path in family.leaves}
    return [name for name in found if name not in own]


def _told(where: str, aside: Iterable[str], beside: tuple[str, ...], read: str) -> tuple[str, ...]:
    """One line on what is left aside."""
    parts = Counter(
        start.rstrip(".") for name in aside for start in beside if bare(name).startswith(start)
    )
    listed = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
    return (f"{where}: left aside, as no part of {read}: {listed}",) if parts else ()


def _no_model(directory: Path) -> str:
    if (directory / "adapter_config.json").exists() or (directory / "adapter.json").exists():
        return f"{directory} is an adapter, no model: name its base as the model"
    if files := sorted(path.name for path in directory.glob("*.gguf")):
        return f"{directory} holds {_words.named(files)}: name the file itself"
    return f"{directory / 'config.json'} is missing"
