"""The tensors of an adapter's file: read and checked by name, and written in one step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jlora import _files
from jlora._requires import requires
from jlora._safetensors import not_whole
from jlora._words import first_few
from jlora.peft import _fields
from jlora.peft._naming import PREFIX, as_peft

FILE = "adapter_model.safetensors"
BESIDE = "base_model."
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")


class Where(NamedTuple):
    """The file of the tensors, and what their names begin with in it."""

    file: str
    prefix: str


IN_PEFT = Where(FILE, PREFIX)


def read(directory: Path, *, name: str = FILE, shared: bool = False) -> dict[str, np.ndarray]:
    """The tensors by their names in the model, in the file's own dtypes.

    With ``shared`` also those that stand beside the model's: their names begin with `BESIDE`.

    Raises:
        ValueError: when there is no file, when it is cut short, or when a tensor holds what is no
            number: all such tensors are named.
    """
    path = directory / name
    if not path.exists():
        pickled = [name for name in _PICKLES if (directory / name).exists()]
        raise ValueError(
            f"{directory / pickled[0]} is a pickle, which can run any code, and is not read. "
            f"Convert it to {FILE} in PEFT: load it there and save_pretrained it again"
            if pickled
            else f"{directory} holds no PEFT adapter: {name} is missing"
        )
    _files.require_regular(path)
    safetensors = requires("safetensors")
    tensors: dict[str, np.ndarray] = {}
    problems: list[str] = []
    try:
        with safetensors.safe_open(str(path), framework="flax") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                tensors[name] = np.asarray(opened.get_tensor(name))
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        raise not_whole(path, error) from None
    for name, tensor in tensors.items():
        if shared and not name.startswith(BESIDE):
            problems.append(f"{name}: expected a name that begins with {BESIDE}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} is of dtype {tensor.dtype}: expected a floating type")
        elif not np.isfinite(tensor.astype(np.float32)).all():
            problems.append(f"{name} holds what is no finite number: its training went wrong")
    if not shared:
        tensors, wrong = as_peft(tensors)
        problems += wrong
    if problems:
        raise ValueError(f"{path} can't be used:{first_few(problems, 12)}")
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def write(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    where: Where = IN_PEFT,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes both files, and those ``beside`` them; none takes its place before all are complete.

    Names of tensors are those in the model; one that begins with `BESIDE` stands beside it.

    Raises:
        ValueError: when the folder holds something and ``overwrite`` is False.
        OSError: when they can't be written; what was there stays.
    """
    requires("safetensors")
    from safetensors.numpy import save

    content = save(
        {
            f"{'' if name.startswith(BESIDE) else where.prefix}{name}": np.ascontiguousarray(tensor)
            for name, tensor in tensors.items()
        },
        metadata={"format": "pt"},
    )
    text = json.dumps(dict(sorted(settings.items())), indent=2, ensure_ascii=False)
    files = {where.file: content, _fields.FILE: text.encode(), **beside}
    write_folder(directory, files, names=_fields.FILE, overwrite=overwrite)


def write_folder(
    directory: Path, files: Mapping[str, bytes], *, names: str, overwrite: bool
) -> None:
    """Writes the files, by their names in the folder, as `write` does.

    ``names`` is the one without which the others are nothing.

    Raises:
        ValueError: as `write`.
        OSError: as `write`.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: expected a folder to save the adapter in")
    there = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    # What a save that broke off leaves behind is nobody's work.
    left = rf"\.({'|'.join(map(re.escape, files))})\.\d+"
    there = [name for name in there if not re.fullmatch(left, name)]
    if there and not overwrite:
        raise ValueError(
            f"{directory} is not empty ({', '.join(sorted(there)[:5])}): choose a new folder, or "
            "overwrite=True to replace an adapter there; other files stay"
        )
    _files.require_room(directory, sum(map(len, files.values())))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{directory} could not be made: {error.strerror}") from error
    contents = {directory / name: content for name, content in files.items()}
    _files.write_together(contents, names=directory / names)
