"""Which tensors of a GGUF file an adapter changes, and in which type each is written again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora import _words
from jlora._lora_dict import shared_of
from jlora._lowrank import Factored
from jlora._node import Node
from jlora.models._files import _gguf, _gguf_encoding
from jlora.models._files._gguf_encoding import block_of
from jlora.models._files._gguf_tensors import Held, shape_of
from jlora.models._files._layer_by_layer import Piece, pieces
from jlora.models._files._stacking import stored_of
from jlora.models._files._torch_tensors import oriented

_PRODUCTS = ("linear", "experts")  # beside embeddings, the weights that files hold in few bits


@dataclasses.dataclass(frozen=True)
class Changed:
    """One tensor of the file that changes."""

    kind: Any  # the type that it will have
    pieces: tuple[Piece, ...]  # of the model, that lie in it
    by_minima: bool  # its blocks change by their minima alone


class UnwritableError(ValueError):
    """Tensors that can't be written in the type that they have."""


def plan_of(read: _gguf.Read, lora: Mapping[str, Node], given: Any) -> dict[str, Changed]:
    """What changes, by the names in the file.

    Raises:
        ValueError: naming all tensors that can't be written.
    """
    shared, found = shared_of(lora), read.found
    of_tensor: dict[str, list[Piece]] = {}
    for piece in pieces(read.model.config):
        node = lora.get(piece.path)
        if node is not None and not _adds_nothing(node, piece, shared):
            for name in read.tensors.held_in(_name(read, piece)):
                of_tensor.setdefault(name, []).append(piece)
    plan: dict[str, Changed] = {}
    problems: list[str] = []
    for name, its in of_tensor.items():
        own = found[name].tensor_type
        kind = own
        if given is not None and (own.name not in _gguf_encoding.TYPES or _takes(read, its[0])):
            kind = given
        pooled = all(lora[piece.path].constant_along is not None for piece in its)
        # into another type, or by a type that was asked for, it goes as any other change
        by_minima = kind == own and pooled and block_of(own) > 1
        by_minima &= given is None or own.name in _gguf_encoding.WITH_MINIMA
        problem = _problem(name, shape_of(found[name]), kind, by_minima)
        if problem is None and by_minima and not all(_in_blocks(read, p, lora, own) for p in its):
            problem = (
                f"{name} has blocks of weights over which the adapter's change is not the same"
            )
        if problem:
            problems.append(problem)
        plan[name] = Changed(kind, tuple(its), by_minima)
    if problems:
        raise UnwritableError(
            "these tensors can't be written with the adapter in them:"
            + _words.first_few(problems, 12)
            + "\nThe adapted tensors can get another type: "
            + ", ".join(_gguf_encoding.TYPES)
        )
    return plan


def _problem(name: str, shape: tuple[int, ...], kind: Any, by_minima: bool) -> str | None:
    """Why the tensor can't be written in this type, or by its minima."""
    if by_minima and kind.name not in _gguf_encoding.WITH_MINIMA:
        why = "where blocks share a minimum" if kind.name.endswith("_K") else "which has no minima"
        return (
            f"{name} is {kind.name}, {why}: a change that is pooled over inputs stays whole in "
            f"{' and '.join(_gguf_encoding.WITH_MINIMA)} alone"
        )
    if kind.name not in _gguf_encoding.TYPES:
        return f"{name} is {kind.name}, which can be read and not be written"
    if shape[-1] % block_of(kind):
        return f"{name} has rows of {shape[-1]}, which blocks of {kind.name} do not divide"
    return None


def _takes(read: _gguf.Read, piece: Piece) -> bool:
    """Whether a type that is given counts for it: where files hold few bits as well."""
    kind = stored_of(read.model.leaves, piece.path).kind
    return kind in _PRODUCTS or piece.path.endswith("/embedding")


def _in_blocks(read: _gguf.Read, piece: Piece, lora: Mapping[str, Node], kind: Any) -> bool:
    """Whether a change that is constant as the node says is so in each block of the file's rows."""
    constant = lora[piece.path].constant_along
    assert constant is not None
    dim, count = constant[0] - (piece.at is not None), constant[1]
    numbers = [np.arange(size, dtype=np.float64) for size in piece.shape]
    numbers[dim] //= count
    marked, stride = np.zeros(piece.shape), 1
    for axis, each in enumerate(numbers):  # the same number where the change is the same
        marked += np.expand_dims(stride * each, [d for d in range(len(numbers)) if d != axis])
        stride *= len(each)
    return not any(
        np.ptp(held.values.reshape(-1, block_of(kind)), axis=-1).any()
        for held in in_file(read, piece, marked).values()
    )


def _adds_nothing(node: Node, piece: Piece, shared: Mapping[str, Any]) -> bool:
    """Whether this layer of the leaf is not adapted: its rank is 0, say."""
    weight = np.broadcast_to(np.float32(0), piece.shape)  # which takes no memory
    if piece.at is not None:
        node, weight = node.part(0, piece.at), weight[None]
    result = node.adapt(weight, shared)
    if not isinstance(result, Factored):
        return False
    none = all(
        not np.any(product.a.array) or not np.any(product.scaled_b.array)
        for product in result.products
    )
    return none and (result.gain is None or bool(np.all(np.asarray(result.gain.array) == 1)))


def _name(read: _gguf.Read, piece: Piece) -> str:
    return stored_of(read.model.leaves, piece.path).name.format(piece.layer or 0)


def in_file(read: _gguf.Read, piece: Piece, value: np.ndarray) -> dict[str, Held]:
    """What the file's tensors hold of the piece."""
    its = stored_of(read.model.leaves, piece.path)
    return read.tensors.into_file(_name(read, piece), oriented(its, value))
