"""Adapters of llama.cpp: one GGUF file, ``lora_a`` and ``lora_b`` by the names of its tensors.

``lora_a`` is (rank, in) and ``lora_b`` (out, rank), with the experts in front where there are some;
of the embedding ``lora_a`` is (vocabulary, rank). The product is multiplied by the file's one alpha
over the rank of each tensor; where alpha is 0 or missing, by nothing.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jlora import _paths
from jlora._config import LoraConfig
from jlora._lora_dict import Lora
from jlora._requires import requires
from jlora._words import first_few
from jlora.peft import _factors, _fields, _names, _pairs
from jlora.peft._configuration import configuration
from jlora.peft._layout import Leaf
from jlora.peft._pairs import Pair

SUFFIX = ".gguf"
FILE = "adapter.gguf"  # in a folder that jlora writes
EMBEDDING = "token_embd.weight"
HUB = "https://huggingface.co/"
ENDS = ("lora_a", "lora_b")


class Header(NamedTuple):
    """What the header says, and the tensors by name: not read yet."""

    architecture: str
    alpha: float  # 0: none
    base: str | None  # the name of its model
    tensors: dict[str, Any]


def is_one(path: Path) -> bool:
    """Whether a path is that of such a file, and of no folder."""
    return path.suffix == SUFFIX and not path.is_dir()


def in_folder(directory: Path) -> Path | None:
    """The file in a folder that has no adapter of another kind, or None."""
    path, others = directory / FILE, ("adapter.json", _fields.FILE)
    return path if path.exists() and not any((directory / n).exists() for n in others) else None


def header(path: Path) -> Header:
    """The header of an adapter's file.

    Raises:
        ValueError: when it is no whole GGUF file, or no adapter that jlora can honour.
    """
    from jlora.models._files import _gguf_fields

    gguf = requires("gguf")
    fields, tensors = _gguf_fields.read(path)
    keys, general = gguf.Keys.Adapter, gguf.Keys.General
    if (kind := fields.get(general.TYPE)) != gguf.GGUFType.ADAPTER:
        raise ValueError(f"{path} is no adapter: its {general.TYPE} is {kind!r}")
    alpha = fields.get(keys.LORA_ALPHA, 0.0)
    problems = []
    if (kind := fields.get(keys.TYPE)) != "lora":
        problems.append(f"{keys.TYPE} is {kind!r}: expected 'lora'")
    if not isinstance(alpha, int | float) or not np.isfinite(alpha):
        problems.append(f"{keys.LORA_ALPHA} is {alpha!r}: expected a number")
    if fields.get(keys.ALORA_INVOCATION_TOKENS):
        problems.append(f"{keys.ALORA_INVOCATION_TOKENS}: jlora's adapters count for every token")
    if problems:
        raise ValueError(f"{path} can't be honoured:{first_few(problems)}")
    url = str(fields.get(general.BASE_MODEL_REPO_URL.format(id=0), ""))
    name = fields.get(general.BASE_MODEL_NAME.format(id=0))
    base = url.removeprefix(HUB) if url.startswith(HUB) else name
    return Header(str(fields.get(general.ARCHITECTURE)), float(alpha), base, tensors)


def settings(path: Path) -> dict[str, Any]:
    """What the header and the shapes say, in PEFT's words.

    Raises:
        ValueError: as `header`.
    """
    known = header(path)
    of_tensors = (
        rank_of(tensor, shape_of(known.tensors[name]))
        for name in known.tensors
        for tensor, _, end in [name.rpartition(".")]
        if end == "lora_a"
    )
    common = collections.Counter(of_tensors).most_common(1)
    rank = common[0][0] if common else _fields.HONOURED["r"]
    return {
        **_fields.HONOURED,
        "r": rank,
        "lora_alpha": _written(known.alpha) or rank,
        "base_model_name_or_path": known.base,
    }


def load(path: Path, model: Any, dtype: Any) -> tuple[Lora, LoraConfig]:
    """The pair (lora, config) of an adapter's file, in float32 unless another dtype is asked for.

    Raises:
        ValueError: when it is damaged, of another model, or holds what jlora has nothing like: all
            of it named at once.
    """
    from jlora.models import TextModel
    from jlora.models._files._gguf_rows import Places

    if not isinstance(model, TextModel):
        raise ValueError(f"{path} is of a jlora.models.Model: got {type(model).__name__}")
    known, layout, places = header(path), _names.layout(model, None, None), Places(model)
    if known.architecture not in places.architectures:
        raise ValueError(
            f"{path} is of a {known.architecture} model, but {model.name} is of "
            f"{' or '.join(places.architectures)}"
        )
    pairs, problems = _pairs_in(known.tensors)
    names = set(pairs)
    lora: Lora = {}
    for leaf in layout.leaves.values():
        if leaf.axes is None or not places.has(leaf.path):
            continue
        joined: dict[tuple[int, ...], Pair] = {}
        for layer, number in layers(leaf):
            pieces: list[tuple[_pairs.Outputs, Pair]] = []
            for rows in places.of(leaf.path, number, leaf.outputs, names):
                if (its := pairs.pop(rows.tensor, None)) is None:
                    continue
                pair = _pair(rows.tensor, its, leaf, len(rows.outputs), known.alpha)
                if isinstance(pair, str):
                    problems.append(pair)
                else:
                    pieces.append((rows.outputs, pair))
            if pieces:
                joined[layer] = _pairs.beside(pieces, leaf.outputs)
        if joined:
            lora[leaf.path] = _factors.low_rank(leaf, joined, dtype)
    problems += [f"{name}: the model has no such tensor" for name in pairs]
    if model.config.tied and EMBEDDING in names:
        problems.append(
            f"{EMBEDDING}: the model's head is its embedding, and the file does not say whether it "
            "is meant as well"
        )
    if not lora and not problems:
        problems.append("no tensor is adapted: expected at least one lora_a and lora_b")
    if problems:
        raise ValueError(f"{path} does not fit the model:{first_few(problems, 12)}")
    return lora, configuration(settings(path), lora, layout.leaves)


def layers(leaf: Leaf) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each place in a leaf's stack of layers, and the number that the layer has in the model."""
    numbers = _paths.numbers(leaf.path, leaf.stack[0]) if leaf.layers else range(1)
    places = range(leaf.stack[0]) if leaf.layers else range(1)
    for at, number in zip(places, numbers, strict=True):
        yield ((at,) if leaf.layers else ()), number


def turned(tensor: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the file has them, or as we have them: its own inverse.

    Args:
        tensor: its name.
        a: (*experts, in, rank) or (*experts, rank, in).
        b: (*experts, rank, out) or (*experts, out, rank).
    """
    return (a if tensor == EMBEDDING else a.swapaxes(-1, -2)), b.swapaxes(-1, -2)


def rank_of(tensor: str, a: Sequence[int]) -> int:
    """The rank, by the shape of A as the file has it; 0 where that is none."""
    return 0 if len(a) < 2 else a[-1 if tensor == EMBEDDING else -2]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Of a tensor of `Header`, as numpy has it."""
    return tuple(map(int, tensor.shape))[::-1]


def _pairs_in(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], list[str]]:
    """A and B as they lie there, by the name of the tensor that they adapt; and what is wrong."""
    pairs: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name in tensors:
        tensor, _, end = name.rpartition(".")
        if end in ENDS:
            pairs.setdefault(tensor, {})[end] = tensors[name]
        else:
            problems.append(f"{name}: expected the name of a lora_a or a lora_b")
    for name, its in list(pairs.items()):
        if missing := [f"{name}.{end}" for end in ENDS if end not in its]:
            problems.append(f"{missing[0]}: missing")
            del pairs[name]
    return pairs, problems


def _pair(name: str, its: Mapping[str, Any], leaf: Leaf, outputs: int, alpha: float) -> Pair | str:
    """The pair of one tensor, or what is wrong with it."""
    experts = leaf.stack[leaf.layers :]
    found: list[np.ndarray] = []
    for end in ENDS:
        array = _read(its[end])
        if isinstance(array, str):
            return f"{name}.{end} {array}"
        found.append(array)
    a, b = found
    rank = rank_of(name, a.shape)
    wanted_a, wanted_b = turned(
        name, np.empty((*experts, leaf.inputs, rank)), np.empty((*experts, rank, outputs))
    )
    wrong = [
        f"{name}.{end}: expected {want.shape}, got {got.shape}"
        for end, want, got in zip(ENDS, (wanted_a, wanted_b), found, strict=True)
        if want.shape != got.shape
    ]
    if wrong:
        return "; ".join(wrong)
    scaling = np.float32(alpha) / np.float32(rank) if alpha else np.float32(1)
    return Pair(*turned(name, a, b), np.full(rank, scaling, np.float32))


def _read(tensor: Any) -> np.ndarray | str:
    """The tensor in float32, or what is wrong with it."""
    gguf = requires("gguf")
    try:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    except NotImplementedError:
        kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
        return f"is of type {kind}, which holds no numbers of an adapter"
    if not np.isfinite(array).all():
        return "holds what is no finite number: its training went wrong"
    return array.reshape(shape_of(tensor))


def _written(alpha: float) -> float | int:
    """A number of 32 bits as the shortest decimal that is stored so."""
    shortest = float(str(np.float32(alpha)))
    return int(shortest) if shortest == int(shortest) else shortest
