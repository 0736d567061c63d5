"""The tokenizer that an adapter's folder brings along, in place of its base's."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora._files import read_json_object, require_regular
from jlora._words import one_line
from jlora.models._text import _from_huggingface
from jlora.models._text._tokenizer import Tokenizer

# What an adapter's folder may hold of a tokenizer.
FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
_BESIDE_TOKENIZER_JSON = (
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
)
_OTHER_FORMS = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


def with_tokenizer(model: Any, directory: str | Path) -> Any:
    """The `Model` with the tokenizer and the chat template that stand in an adapter's folder.

    What ends an answer of the base ends one here as well. A folder without any of it leaves the
    model as it is.

    Args:
        model: a `Model`, or an `outline` of one.
        directory: the adapter's folder.

    Raises:
        ValueError: when they can't be read, or name more tokens than the model has.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import tokenizers
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> own = models.Tokenizer(words, None, (0,), {}, "here")
        >>> model = models.Model({}, config, tokenizer=own, name="tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "chat_template.jinja").write_text("{{ messages }}")
        ...     models.with_tokenizer(model, folder).tokenizer.template
        '{{ messages }}'
    """
    tokenizer = beside(Path(directory), model.tokenizer, model.config.vocabulary)
    return model if tokenizer is None else dataclasses.replace(model, tokenizer=tokenizer)


def of_folder(directory: Path, settings: Mapping[str, Any], *, writes: bool = True) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; ``settings`` is its config.json.

    A model that ``writes`` must name what ends an answer.

    Raises:
        ValueError: when a file is missing, damaged or of another kind.
    """
    path = directory / "tokenizer.json"
    if not path.exists() and any((directory / name).exists() for name in _OTHER_FORMS):
        raise ValueError(f"{path} is missing{_CONVERT}")
    try:
        return _from_huggingface.from_huggingface(directory, settings, writes=writes)
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError) as error:
        raise ValueError(
            f"the tokenizer's files in {directory} can't be used: {one_line(repr(error))}"
        ) from None


def beside(directory: Path, base: Tokenizer, vocabulary: int) -> Tokenizer | None:
    """The folder's own tokenizer, or the base's with the folder's template; None without either."""
    for path in directory.glob("*"):
        if path.suffix in (".json", ".jinja"):
            require_regular(path)
    if (directory / "tokenizer.json").exists():
        ends = {"eos_token_id": list(base.stop_ids)}
        own = of_folder(directory, ends, writes=bool(base.stop_ids))
        highest = max(own.backend.get_vocab(with_added_tokens=True).values(), default=0)
        if highest >= vocabulary:
            raise ValueError(
                f"{directory / 'tokenizer.json'} has token {highest}, but the model has "
                f"{vocabulary}, and the adapter no rows for more: it is of another model"
            )
        return own if own.template else dataclasses.replace(own, template=base.template)
    _check_without(directory, base)
    path = directory / "tokenizer_config.json"
    own = read_json_object(path) if path.exists() else {}
    template = _from_huggingface.template_in(directory, own)
    return None if template is None else dataclasses.replace(base, template=template)


def tokenizer_files(directory: str | Path) -> dict[str, bytes]:
    """The files of a tokenizer and its templates in a folder, by name.

    Args:
        directory: a model's or an adapter's folder.

    Raises:
        ValueError: when one can't be read.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> from jlora import models
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "chat_template.jinja").write_text("{{ messages }}")
        ...     models.tokenizer_files(folder)
        {'chat_template.jinja': b'{{ messages }}'}
    """
    return files_of(Path(directory), FILES)


def files_of(directory: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """The contents of a folder's files of these patterns, by name.

    Raises:
        ValueError: when one can't be read.
    """
    files = sorted({path for pattern in patterns for path in directory.glob(pattern)})
    try:
        return {path.name: path.read_bytes() for path in files if path.is_file()}
    except OSError as error:
        raise ValueError(f"{directory} can't be read: {error}") from None


def in_place_of(
    files: Mapping[str, bytes], directory: Path, tokenizer: Tokenizer
) -> dict[str, bytes]:
    """A base's files with those of the folder in place of its tokenizer's.

    Args:
        files: the base's, by name.
        directory: the adapter's folder.
        tokenizer: what `beside` made of the two. Its template is written where it is looked for
            first, whichever of the files it came from.
    """
    template = tokenizer.template
    first = {} if template is None else {"chat_template.jinja": template.encode()}
    own = tokenizer_files(directory)
    if "tokenizer.json" not in own:  # the base's, and all that its files say of it
        return {**files, **first}
    kept = {
        name: content
        for name, content in files.items()
        if not any(fnmatch.fnmatch(name, form) for form in _BESIDE_TOKENIZER_JSON)
    }
    return {**kept, **own, **first}


def _check_without(directory: Path, base: Tokenizer) -> None:
    """Raises a ValueError where a folder has another tokenizer, but no tokenizer.json."""
    path = directory / "added_tokens.json"
    added = read_json_object(path) if path.exists() else {}
    if unknown := [t for t, at in added.items() if base.backend.token_to_id(t) != at]:
        raise ValueError(f"{path} adds {unknown[0]!r}, which the base does not have{_CONVERT}")
    if other := [name for name in _OTHER_FORMS if (directory / name).exists()]:
        raise ValueError(f"{directory / other[0]} stands without tokenizer.json{_CONVERT}")


_CONVERT = (
    ". Write tokenizer.json beside it: transformers.AutoTokenizer.from_pretrained(folder)"
    ".save_pretrained(folder)"
)
