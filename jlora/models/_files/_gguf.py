"""A model out of a .gguf file: tensors dequantised, tokenizer and template from the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jlora import _words
from jlora.models._files import _gguf_fields, _gguf_header, _gguf_rope, _gguf_tensors
from jlora.models._files._left_over import left_over
from jlora.models._files._stacking import Opened
from jlora.models._text import _from_gguf


def opened(path: Path) -> Opened:
    """A GGUF file, or all of those that it was split into.

    Raises:
        ValueError: when the file is no whole GGUF file, or of a model that jlora does not know.
    """
    return read(path).model


class Read(NamedTuple):
    """A GGUF file as the model that it is, and as the file that it is."""

    model: Opened
    tensors: _gguf_tensors.Tensors  # by the model's names; they know the way back
    fields: _gguf_fields.Fields
    found: dict[str, Any]  # the tensors as the file has them


def read(path: Path) -> Read:
    """What `opened` gives, and what it was made of.

    Raises:
        ValueError: as `opened`.
    """
    where = str(path)
    fields, found = _gguf_fields.read(path)
    config = _gguf_header.config_of(fields, found, where)
    _, family, route = _gguf_header.route_of(fields, where)
    try:
        tokenizer = _from_gguf.from_gguf(fields, where)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{where}: the tokenizer in the header can't be used: {_words.one_line(repr(error))}"
        ) from None
    leaves = _gguf_tensors.leaves_of(family, route)
    tensors = _gguf_tensors.Tensors(found, leaves, route, config)
    model = Opened(
        config=config,
        tokenizer=tokenizer,
        leaves=leaves,
        shapes=tensors.shapes,
        tensor=tensors.tensor,
        dtype=tensors.dtype,
        ignored={*_gguf_rope.honoured(config), *left_over(leaves, config)},
        where=where,
        kept=tensors.kept,
    )
    return Read(model, tensors, fields, found)
