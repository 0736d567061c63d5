"""How a leaf of ours lies in a Hugging Face file: under which names, in which orientation.

A leaf's kernel is (in, out), with a stack of layers and of experts in front of it. `Stored` says,
as data, what transformers calls the same parameter and how it holds it; `to_stored` and
`from_stored` go between one layer of the leaf and the tensors of a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jlora.models._files import _boxes
from jlora.models._files._boxes import Box, Index

Kind = Literal["linear", "router", "conv1d", "experts", "experts_as_ours", "plain", "buffer"]
_TRANSPOSED: tuple[Kind, ...] = ("linear", "router", "experts")


@dataclasses.dataclass(frozen=True)
class Stored:
    """One parameter in transformers.

    ``kind`` is ``"linear"``, held as (out, in); ``"router"``, the same in a module that is no
    linear layer of torch; ``"conv1d"``, (in, out) as ours is;
    ``"experts"``, (experts, out, in); ``"experts_as_ours"``, (experts, in, out); ``"plain"``, an
    embedding, norm or bias, as ours is; or ``"buffer"``, what no gradient reaches, which is kept in
    float32 whatever the dtype of the rest.

    Example:
        >>> from jlora import models
        >>> models.Stored("transformer.h.{}.mlp.c_fc.weight", "conv1d").fan_in_fan_out
        True
    """

    name: str  # as in named_parameters, with {} for the layer
    kind: Kind
    parts: tuple[str, ...] = ()  # of experts: each expert's modules in a file, stacked along out
    in_file: str | None = None  # where a file has another name; with parts, that of all experts
    # PEFT takes the name of its module for an expert's: it means the module by its parameter.
    as_parameter: bool = False
    # PEFT takes experts that lie (in, out) for (out, in): its A is our B.
    turned_in_peft: bool = False

    @property
    def written(self) -> str:
        """The name in a file, with {} for the layer."""
        return self.in_file or self.name

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether PEFT must be told that this weight is (in, out)."""
        return self.kind == "conv1d"


def linear(name: str, *, as_parameter: bool = False) -> Stored:
    return Stored(name, "linear", as_parameter=as_parameter)


def conv1d(name: str) -> Stored:
    return Stored(name, "conv1d")


def plain(name: str) -> Stored:
    return Stored(name, "plain")


def buffer(name: str) -> Stored:
    return Stored(name, "buffer")


def router(name: str, *, in_file: str | None = None) -> Stored:
    return Stored(name, "router", in_file=in_file)


def experts(name: str, *parts: str, in_file: str | None = None) -> Stored:
    return Stored(name, "experts", parts, in_file)


def experts_as_ours(name: str, *, turned_in_peft: bool = False) -> Stored:
    return Stored(name, "experts_as_ours", turned_in_peft=turned_in_peft)


def oriented(stored: Stored, value: Any) -> Any:
    """One layer of a leaf as transformers holds it in memory, or the way back: its own inverse."""
    return value.swapaxes(-1, -2) if stored.kind in _TRANSPOSED else value


def oriented_box(stored: Stored, box: Box) -> Box:
    """A box of a leaf, or of one layer of it, as `oriented` turns it."""
    return (*box[:-2], box[-1], box[-2]) if stored.kind in _TRANSPOSED else box


def to_stored(stored: Stored, layer: int, value: Any) -> dict[str, Any]:
    """The tensors that transformers' ``save_pretrained`` writes for one layer of a leaf, by name.

    Args:
        stored: the leaf's entry in the family's table (`Model.stored`).
        layer: its number in the model; any for a leaf that is no stack.
        value: that layer, without the stack's dimension, a numpy or JAX array.

    Example:
        >>> import numpy as np
        >>> from jlora import models
        >>> stored = models.Stored("model.layers.{}.mlp.up_proj.weight", "linear")
        >>> [(name, tensor)] = models.to_stored(stored, 3, np.ones((7, 5))).items()
        >>> name, tensor.shape
        ('model.layers.3.mlp.up_proj.weight', (5, 7))
    """
    held = oriented(stored, value)
    return {name: held[index] for name, index in places(stored, layer, value.shape).items()}


def places(
    stored: Stored, layer: int, shape: tuple[int, ...], *, fused: bool = False
) -> dict[str, Index]:
    """The names of `to_stored`, and where each tensor lies in the layer as transformers holds it.

    With ``fused`` those of the parameter in memory.
    """
    held = _boxes.shape(oriented_box(stored, _boxes.whole(shape)))
    if fused or not stored.parts:
        name = stored.name if fused else stored.written
        return {name.format(layer): _boxes.index(_boxes.whole(held))}
    width = held[1] // len(stored.parts)
    return {
        _of_expert(stored, layer, expert, part): (expert, slice(at * width, (at + 1) * width))
        for expert in range(held[0])
        for at, part in enumerate(stored.parts)
    }


def stored_shapes(
    stored: Stored, layer: int, shape: tuple[int, ...], *, fused: bool = False
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of `to_stored`; with ``fused``, of the parameter in memory."""
    held = oriented(stored, np.broadcast_to(np.int8(0), shape))
    where = places(stored, layer, shape, fused=fused)
    return {name: held[index].shape for name, index in where.items()}


def from_stored(
    stored: Stored, layer: int, shape: tuple[int, ...], tensors: Mapping[str, Any]
) -> Any:
    """One layer of a leaf, of ``shape``, from a file's tensors: the inverse of `to_stored`.

    Experts may also lie in the file as in memory, all in one tensor; so may any leaf that has
    another name in a file.

    Args:
        stored: the leaf's entry in the family's table (`Model.stored`).
        layer: its number in the model; any for a leaf that is no stack.
        shape: of that layer, without the stack's dimension.
        tensors: those of the file, by name; each is read when it is asked for.

    Raises:
        ValueError: naming the tensors that are missing or of another shape.

    Example:
        >>> import numpy as np
        >>> from jlora import models
        >>> stored = models.Stored("model.layers.{}.mlp.up_proj.weight", "linear")
        >>> tensors = {"model.layers.3.mlp.up_proj.weight": np.ones((5, 7))}
        >>> models.from_stored(stored, 3, (7, 5), tensors).shape
        (7, 5)
    """
    fused = stored.name.format(layer) in tensors
    wanted = stored_shapes(stored, layer, shape, fused=fused)
    found = {name: tensors[name] for name in wanted if name in tensors}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [
        f"{name} has shape {tuple(tensor.shape)}, expected {wanted[name]}"
        for name, tensor in found.items()
        if tuple(tensor.shape) != wanted[name]
    ]
    if problems:
        raise ValueError("; ".join(problems))
    if fused or not stored.parts:
        return oriented(stored, next(iter(found.values())))
    value = np.empty(shape, np.result_type(*found.values()))
    for name, index in places(stored, layer, shape).items():
        oriented(stored, value)[index] = found[name]
    return value


def _of_expert(stored: Stored, layer: int, expert: int, part: str) -> str:
    module = (stored.in_file or stored.name.rpartition(".")[0]).format(layer)
    return f"{module}.{expert}.{part}.weight"
