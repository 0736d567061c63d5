"""A model out of a Hugging Face folder, or of a repository on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jlora._files import read_json_object
from jlora._requires import requires
from jlora._safetensors import headers
from jlora.models import _families
from jlora.models._families import Family
from jlora.models._files import _quantised_tensors
from jlora.models._files._shards import DTYPES
from jlora.models._files._stacking import Opened
from jlora.models._text import _from_huggingface

# What older files hold beside the parameters: rotary frequencies, causal masks.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


def download(hub_id: str) -> Path:
    """The local folder of a model on the hub; fetches what is not there yet.

    Raises:
        ValueError: when the hub can't be reached or has no such model.
    """
    hub = requires("huggingface_hub")
    patterns = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # a dozen types, of several libraries
        raise ValueError(
            f"{hub_id!r} is no file or folder here, and as a model on the Hugging Face hub it "
            f"could not be fetched: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from None


def opened(directory: Path) -> Opened:
    """A folder with config.json, a tokenizer and safetensors.

    Raises:
        ValueError: when a file is missing, broken, or of a model that jlora does not know.
    """
    where = str(directory)
    settings = read_json_object(directory / "config.json")
    config = _families.from_huggingface(settings, f"{directory / 'config.json'}")
    family = _families.family_of(config.family, where)
    tokenizer = _from_huggingface.from_huggingface(directory, family.flat(settings))
    safetensors = requires("safetensors")
    tensors = headers(_files(directory))
    held = _by_written_name(tensors, family)
    shapes = {name: tensors[within].shape for name, within in held.items()}

    def read(name: str) -> np.ndarray:
        # opened each time: a mapped file counts as memory, as much of it as was read
        with safetensors.safe_open(str(tensors[held[name]].file), framework="flax") as file:
            return np.asarray(file.get_tensor(held[name]))

    def dtype(name: str) -> np.dtype:
        tensor = tensors[held[name]]
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{tensor.file}: {name} is of dtype {tensor.dtype}, expected one of "
                f"{', '.join(DTYPES)}"
            )
        return DTYPES[tensor.dtype]

    ignored = [name for name in shapes if _BUFFERS.search(name)]
    opened = Opened(
        config=config,
        tokenizer=tokenizer,
        leaves=family.leaves,
        shapes=shapes,
        read=read,
        dtype=dtype,
        ignored=[*ignored, family.leaves["head/kernel"].written] if config.tied else ignored,
        where=where,
        aside=[name for name in shapes if family.nested and name.startswith(family.nested.aside)],
    )
    files = {name: (within, tensors[within]) for name, within in held.items()}
    return _quantised_tensors.dequantised(opened, files, settings.get("quantization_config"))


def _by_written_name(names: Iterable[str], family: Family) -> dict[str, str]:
    """The names in the files, by those that transformers writes today."""
    renamed = family.nested.renamed if family.nested else {}
    written = {}
    for name in names:
        begun = [begin for begin in renamed if name.startswith(begin)]
        written[renamed[begun[0]] + name.removeprefix(begun[0]) if begun else name] = name
    # A file of a model without its head leaves the first part of all names out.
    prefix = family.leaves["embed/embedding"].written.split(".")[0] + "."
    bare = "" if any(name.startswith(prefix) for name in written) else prefix
    return {f"{bare}{name}": within for name, within in written.items()}


def _files(directory: Path) -> list[Path]:
    """The safetensors files, by the index if there is one; none lies outside the folder."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        found = sorted(directory.glob("*.safetensors"))
        if not found:
            raise ValueError(f"{directory} has no *.safetensors file")
        return found
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: expected a weight_map")
    paths = []
    for name in sorted(set(weight_map.values())):
        path = directory / name
        if Path(name).name != name:
            raise ValueError(f"{index}: {name!r} leads out of the folder")
        if not path.exists():
            raise ValueError(f"{index} names {name}, which is missing")
        paths.append(path)
    return paths
