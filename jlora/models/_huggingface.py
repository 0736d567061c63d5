"""A model out of a Hugging Face folder, or of a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from jlora._requires import requires
from jlora.models import _families, _tokenizer
from jlora.models._assemble import assemble
from jlora.models._config import DecoderConfig
from jlora.models._tokenizer import read_json

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


def load(directory: Path, dtype: Any) -> tuple[dict[str, Any], DecoderConfig, _tokenizer.Tokenizer]:
    """The parameters, configuration and tokenizer of a folder with config.json and safetensors.

    Raises:
        ValueError: when a file is missing, broken, or of a model that jlora does not know.
    """
    where = str(directory)
    settings = read_json(directory / "config.json")
    config = _families.from_huggingface(settings, f"{directory / 'config.json'}")
    tokenizer = _tokenizer.from_huggingface(directory, settings)
    safetensors = requires("safetensors")
    family = _families.family_of(config.family, where)
    prefix = family.leaves["embed/embedding"].name.split(".")[0] + "."
    files: dict[str, tuple[Any, str]] = {}  # the file, and the tensor's name in it
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(directory):
        try:
            opened = safetensors.safe_open(str(path), framework="flax")
            for name in opened.keys():  # noqa: SIM118 - not a dict
                # Files of a model without its head leave the prefix out
                full = name if name.startswith((prefix, "lm_head.")) else prefix + name
                files[full] = opened, name
                shapes[full] = tuple(opened.get_slice(name).get_shape())
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path}: no whole safetensors file ({error}). Get it again") from None

    def read(name: str) -> np.ndarray:
        opened, own = files[name]
        return np.asarray(opened.get_tensor(own))

    ignored = [name for name in shapes if _BUFFERS.search(name)]
    ignored += [family.leaves["head/kernel"].name] if config.tied else []
    params = assemble(
        config, family.leaves, shapes, read, dtype=dtype, ignored=ignored, where=where
    )
    return params, config, tokenizer


def _files(directory: Path) -> list[Path]:
    """The safetensors files, by the index if there is one; none lies outside the folder."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        found = sorted(directory.glob("*.safetensors"))
        if not found:
            raise ValueError(f"{directory} has no *.safetensors file")
        return found
    weight_map = read_json(index).get("weight_map")
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
