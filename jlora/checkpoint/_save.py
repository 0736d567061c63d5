"""How an adapter is written into a folder, so that what was there is never lost.

The folder holds ``adapter.json`` and the folder of arrays that it names. The JSON is written last
and in one step, so it never speaks of arrays that are not there: a save that breaks off leaves what
was there before. It has a sum of its own and those of the arrays' files.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jlora import _files, _paths, _sealed_json, _together, _words
from jlora._config import LoraConfig
from jlora._lora_dict import Lora, check, check_is_adapter
from jlora.checkpoint import _arrays
from jlora.checkpoint._checks import check_factors, check_ranks
from jlora.checkpoint._description import FILE, VERSION, description_of


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
            or its base, or the metadata is nothing that JSON can hold; of several processes, when
            the adapter does not lie on the devices of all.
        OSError: when the files can't be written; what was there stays, and nothing else.

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
    check_factors(lora)
    check_ranks(lora, config)
    if base is not None:
        check(base, lora)
    previous = _together.by_first(
        f"looking into {directory}", lambda: sorted(_what_is_there(directory, overwrite))
    )
    number = 1 + max(map(_number, previous), default=0)
    arrays, _ = _paths.arrays(lora)
    arrays_name = f"arrays-{number}"
    description = description_of(lora, config, arrays_name, base, metadata or {})
    try:
        json.dumps(description, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # half a character, too
        raise ValueError(f"the metadata can't be written as JSON: {error}") from None
    _arrays.require_of_all(directory, arrays)
    directory.mkdir(parents=True, exist_ok=True)
    with _removed_if_it_fails(directory / arrays_name):
        _arrays.write(directory / arrays_name, arrays)

    def complete() -> None:
        with _removed_if_it_fails(directory / arrays_name):
            description["seal"] = _arrays.seal(directory / arrays_name)
            _files.sync(directory / arrays_name)
            _sealed_json.write(directory / FILE, description, version=VERSION)
        for name in previous:
            shutil.rmtree(directory / name, ignore_errors=True)

    _together.by_first(f"saving {directory}", complete)


@contextlib.contextmanager
def _removed_if_it_fails(arrays: Path) -> Iterator[None]:
    """Nothing of the arrays is left where this fails; the first process removes them for all."""
    try:
        yield
    except Exception:
        if _together.index() == 0:
            _arrays.remove(arrays)
        raise


def _what_is_there(directory: Path, overwrite: bool) -> list[str]:
    """The folders of arrays to replace, once it is clear that nothing else is in danger.

    What a save that was killed left of its arrays is among them.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: expected a folder to save the adapter in")
    names = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    arrays = [name for name in names if _number(name)]
    # What a save that broke off leaves behind is nobody's work.
    unfinished = [name for name in names if name.startswith(("arrays-", f".{FILE}"))]
    if FILE in names and not overwrite:
        raise ValueError(f"{directory} already holds an adapter: overwrite=True replaces it")
    if set(names) - set(unfinished) and not overwrite:
        raise ValueError(
            f"{directory} holds other files ({_words.named(sorted(names))}): choose a new folder, "
            "or overwrite=True to save beside them"
        )
    return arrays


def _number(name: str) -> int:
    """Of arrays, whole or half written; 0 where the name is another."""
    found = re.match(r"arrays-(\d+)(?![^.])", name)
    return int(found[1]) if found else 0
