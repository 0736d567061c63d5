"""Which rows of which tensors of a GGUF file the outputs of a model's leaf are."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jlora.models import _families
from jlora.models._families import FAMILIES
from jlora.models._files import _gguf_fields, _gguf_tensors, _source
from jlora.models._files._stacking import in_any_stack, stored_of

_MATRICES = ("linear", "router", "experts")
EMBEDDING = "token_embd.weight"


class Rows(NamedTuple):
    """A tensor of a file, and of each of its rows the number of the leaf's output that it makes."""

    tensor: str
    outputs: np.ndarray  # (rows,)


class Places:
    """Where llama.cpp's files of a model have its leaves.

    Raises:
        ValueError: when it has no such files.
    """

    def __init__(self, model: Any):
        family = _families.family_of(model.config.family, model.name)
        if family.gguf is None:
            known = ", ".join(name for name, each in FAMILIES.items() if each.gguf)
            raise ValueError(
                f"{model.name} is a {model.config.family} model, of which jlora knows no GGUF "
                f"files: it knows those of {known}"
            )
        self._route, self._model = family.gguf, model
        self._leaves = _gguf_tensors.leaves_of(family, self._route)

    @property
    def architecture(self) -> str:
        """The general.architecture of the model's own file, or of the one that it becomes."""
        of_file = file_of(self._model) is not None
        return self._route.architecture if of_file else self.architectures[-1]

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that a file of the model can have."""
        return tuple(filter(None, (self._route.architecture, self._route.of_folders)))

    def in_file(self) -> Collection[str] | None:
        """The tensors of the GGUF file that the model came from; None where it came from none."""
        path = file_of(self._model)
        return None if path is None else _gguf_fields.read(path)[1].keys()

    def unadapted(self, path: str) -> str | None:
        """Why llama.cpp can't use an adapter of this leaf, or None where it can."""
        there = in_any_stack(path)
        if there not in self._leaves:
            return "llama.cpp's files have no such weight"
        stored = self._leaves[there]
        if stored.name == EMBEDDING:
            if self._model.config.tied:
                return "it is the head as well, which llama.cpp can't adapt"
            return None
        if stored.kind not in _MATRICES:
            return "llama.cpp adapts products alone"
        plain = any(re.fullmatch(each, there) for each in self._route.unadapted)
        return "llama.cpp does not add adapters to it" if plain else None

    def has(self, path: str) -> bool:
        """Whether a file of the model holds the leaf."""
        return in_any_stack(path) in self._leaves

    def of(
        self, path: str, layer: int, outputs: int, held: Collection[str] | None = None
    ) -> list[Rows]:
        """The tensors that hold one layer of a leaf.

        Args:
            path: of the leaf.
            layer: its number in the model; any for a leaf that is no stack.
            outputs: how many outputs the leaf has.
            held: the tensors among which they are. Of a leaf that may also lie there in parts the
                parts are meant unless the whole is among them.
        """
        stored, config = stored_of(self._leaves, path), self._model.config
        whole = stored.name.format(layer)
        names, sizes, order = [whole], [outputs], np.arange(outputs)
        for joined in self._route.joined:
            if joined.whole in whole and joined.rows and whole not in (held or ()):
                names = [whole.replace(joined.whole, part) for part in joined.parts]
                sizes = joined.rows(outputs, config)
                columns = [_column(each, stored.kind) for each in np.split(order, _ends(sizes))]
                order = joined.join(columns, config).reshape(-1)
        for pattern, undo in self._route.undo.items():
            if re.fullmatch(pattern, in_any_stack(path)):
                order = undo.out(order, config)
        # order: of each output the row that it is, the tensors one below the other
        rows = np.split(np.argsort(order), _ends(sizes))
        return [Rows(*each) for each in zip(names, rows, strict=True)]


def _ends(sizes: Any) -> np.ndarray:
    return np.cumsum(sizes)[:-1]


def _column(rows: np.ndarray, kind: str) -> np.ndarray:
    """The rows' numbers as a tensor with one column, of one expert where there are experts."""
    return rows.reshape(1, -1, 1) if kind == "experts" else rows.reshape(-1, 1)


def file_of(model: Any) -> Path | None:
    """The GGUF file that a model came from, where it did and that is still there."""
    if model.name == _source.DEFAULT:
        return _source.located(model.name)
    path = Path(model.name).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None
