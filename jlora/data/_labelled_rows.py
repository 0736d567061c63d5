"""Rows of texts with labels, as a person's file holds them, and which labels there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jlora import _words
from jlora.data._checked import Form, checked
from jlora.data._messages import Notes, found_keys, kind
from jlora.data._on_disk import Rows, opened
from jlora.data._shapes import renamed

KEYS = ("text", "second", "label")
_EXPECTED = (
    'Expected {"text": ..., "label": ...}, of a pair of texts {"text": ..., "second": ..., '
    '"label": ...}. Other names of keys go by columns: text=sentence'
)
# {"text": ..., "label": ...}, "second" beside them where the row is a pair of texts
LabelledRow = dict[str, Any]


def read_labelled(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> list[LabelledRow]:
    """The rows of texts with labels of a file, a folder, standard input or a hub data set.

    A row holds ``text`` and ``label``, and ``second`` where it is a pair of texts. A label is a
    text, a number or true or false. All are in memory: `open_labelled` leaves them on disk.

    Args:
        source: as in `read_rows`.
        columns: names of keys, ours to the rows' own: ``{"text": "sentence"}``.
        say: called with a line about what was left aside.

    Raises:
        ValueError: as in `read_rows`.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     _ = path.write_text('{"sentence": "Well done", "label": "good"}')
        ...     jlora.data.read_labelled(path, columns={"text": "sentence"})
        [{'text': 'Well done', 'label': 'good'}]
    """
    return [row for _, _, row in checked(source, columns or {}, say, LABELLED)]


def open_labelled(
    source: str | Path,
    *,
    folder: str | Path,
    again: bool = False,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Rows[LabelledRow]:
    """The rows that `read_labelled` gives, left on disk as `open_rows` leaves conversations.

    Args:
        source: as in `read_rows`.
        folder: as in `open_rows`.
        again: as in `open_rows`.
        columns: as in `read_labelled`.
        say: as in `read_labelled`.

    Raises:
        ValueError: as in `read_rows`.
        OSError: when the folder can't be written.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     _ = path.write_text('{"sentence": "Well done", "label": "good"}')
        ...     rows = jlora.data.open_labelled(path, folder=folder, columns={"text": "sentence"})
        ...     len(rows), rows[0]
        (1, {'text': 'Well done', 'label': 'good'})
    """
    return opened(source, LABELLED, folder=Path(folder), again=again, columns=columns, say=say)


def labels_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The labels that occur in the rows, in the order of their numbers or of the alphabet.

    Args:
        rows: from `read_labelled` or `open_labelled`.

    Raises:
        ValueError: when there is one label only: then there is nothing to tell apart.

    Example:
        >>> import jlora
        >>> jlora.data.labels_of([{"text": "b", "label": 10}, {"text": "a", "label": 2}])
        ('2', '10')
    """
    found = {row["label"] for row in rows}
    numbers = all(isinstance(label, int | float) for label in found)
    labels = tuple(dict.fromkeys(map(name_of, sorted(found, key=None if numbers else name_of))))
    if len(labels) < 2:
        raise ValueError(
            f"every row has the label {_words.named(labels) or 'of none'}: expected at least two "
            "labels to tell apart"
        )
    return labels


def row_of(row: Any, columns: Mapping[str, str], notes: Notes) -> LabelledRow:
    """The row in the form that `LabelledRow` describes.

    Raises:
        ValueError: naming the key that can't be used.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a JSON {kind(row)} where an object was expected")
    given = {k: value for k, value in renamed(dict(row), columns).items() if value is not None}
    for name in ("text", "label"):
        if name not in given:
            raise ValueError(f"{name!r} is missing (found {found_keys(given)})")
    for name in KEYS[:2]:
        if name in given and not isinstance(given[name], str):
            raise ValueError(f"{name!r} is a {kind(given[name])}, not text")
        if name in given and not given[name].strip():
            raise ValueError(f"{name!r} is empty")
    if not isinstance(given["label"], str | int | float):
        raise ValueError(f"'label' is a {kind(given['label'])}: expected a text or a number")
    notes.update(f"{key!r}" for key in sorted(given.keys() - set(KEYS)))
    return {name: given[name] for name in KEYS if name in given}


LABELLED: Form[LabelledRow] = Form(row_of, KEYS, _EXPECTED)


def name_of(label: Any) -> str:
    """What a label is called: a whole number by its digits, true and false as JSON has them."""
    if isinstance(label, bool):
        return str(label).lower()
    whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if whole else label)
