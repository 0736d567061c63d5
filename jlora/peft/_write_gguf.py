"""An adapter as the file that llama.cpp loads beside a GGUF model: A and B of each of its tensors.

The facts are in llama.cpp: its source that loads such a file (names, shapes, what it refuses or
leaves unread) and the one that builds a model's graph (which weights an adapter is added to).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora import _files, _hub
from jlora._config import LoraConfig
from jlora._lora_dict import check, check_is_adapter, of_leaves
from jlora._node import Node
from jlora._peft_form import LowRank
from jlora._registry import method_class
from jlora._requires import requires
from jlora._words import first_few
from jlora.peft import _gguf, _names, _pairs
from jlora.peft._layout import Layout, Leaf
from jlora.peft._pairs import Pair
from jlora.peft._write_factors import arrays


def write(
    path: Path,
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    base_model: str | None,
    *,
    overwrite: bool,
) -> None:
    """Writes the file in one step.

    Raises:
        ValueError: as `content`; or when there is such a file and ``overwrite`` is False.
        OSError: when it can't be written; what was there stays.
    """
    if path.suffix != _gguf.SUFFIX or path.is_dir():
        raise ValueError(f"{path}: llama.cpp's adapter is one file: expected NAME{_gguf.SUFFIX}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or overwrite=True")
    whole = content(lora, config, model, base_model)
    _files.require_room(path.parent, len(whole))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path.parent} could not be made: {error.strerror}") from error
    _files.write_together({path: whole})


def base_file(model: Any) -> Path | None:
    """The GGUF file that the model came from, or None."""
    from jlora.models._files._gguf_rows import file_of

    return file_of(model)


def content(
    lora: Mapping[str, Node], config: LoraConfig, model: Any, base_model: str | None
) -> bytes:
    """The whole file.

    Raises:
        ValueError: when llama.cpp has nothing like a part of the adapter: every part is named.
    """
    from jlora.models import TextModel
    from jlora.models._files._gguf_rows import Places

    check_is_adapter(lora)
    if not isinstance(model, TextModel):
        raise ValueError(f"a GGUF adapter is of a jlora.models.Model: got {type(model).__name__}")
    check(model.params, lora)
    layout, places = _names.layout(model, None, None), Places(model)
    if problems := list(_unfit(lora, config, layout, places)):
        raise ValueError(
            f"llama.cpp's adapters can't hold this one:{first_few(problems, 12)}\n"
            "jlora.models.export writes the model with the adapter merged into it"
        )
    tensors: dict[str, Pair] = {}
    held = places.in_file()
    for path, node in of_leaves(lora).items():
        form = node.peft_form()
        assert isinstance(form, LowRank)
        tensors |= _pairs_of(layout.leaves[path], form, places, held)
    alpha = _one_alpha(tensors, config)
    if alpha is None:  # no other scaling than what B has itself
        alpha, tensors = 0.0, {name: _folded(pair) for name, pair in tensors.items()}
    return _file(places.architecture, alpha, tensors, base_model or model.name)


def _unfit(
    lora: Mapping[str, Node], config: LoraConfig, layout: Layout, places: Any
) -> Iterator[str]:
    """What llama.cpp has nothing like, a sentence each."""
    if method_class(str(config.method)).moves_weight(config.init):
        yield (
            f"init is {config.init!r}, which took weight out of the model: "
            "jlora.rebase(lora, start, config) makes an adapter of the original of it"
        )
    nodes = of_leaves(lora)
    if not any(isinstance(node.peft_form(), LowRank) for node in nodes.values()):
        yield "no leaf is adapted: expected at least one LoraWeight"
    for path, node in nodes.items():
        form = node.peft_form()
        if not isinstance(form, LowRank):
            yield f"{path}: {node.kind!r} is no product of A and B"
        elif form.magnitude is not None:
            yield f"{path}: DoRA divides by the norm of the sum"
        elif (reason := places.unadapted(path)) is not None:
            yield f"{path}: {reason}"
        elif node.axes != layout.leaves[path].axes:  # type: ignore
            yield (
                f"{path}: the adapter reads it as {node.axes}, "  # type: ignore
                f"llama.cpp as {layout.leaves[path].axes}"
            )


def _pairs_of(leaf: Leaf, form: LowRank, places: Any, held: Any) -> dict[str, Pair]:
    """The pair of each tensor that holds some of the leaf, where there is something to add."""
    a, b, scaling = arrays(leaf, form)
    found: dict[str, Pair] = {}
    for layer, number in _gguf.layers(leaf):
        pair = _one_scaling(Pair(a[layer], b[layer], scaling[layer]))
        for rows in places.of(leaf.path, number, leaf.outputs, held):
            its = _pairs.of_outputs(pair, rows.outputs)
            if its.rank:
                found[rows.tensor] = _pairs.uniform(its)
    return found


def _one_scaling(pair: Pair) -> Pair:
    """The pair with one scaling for all experts: where theirs differ, B takes them."""
    each = pair.scaling.reshape(-1, pair.scaling.shape[-1])
    if (each == each[:1]).all():
        return dataclasses.replace(pair, scaling=np.asarray(each[0]))
    b = pair.b.astype(np.float32) * pair.scaling[..., None]
    return Pair(pair.a, b, (each != 0).any(0).astype(np.float32))


def _one_alpha(tensors: Mapping[str, Pair], config: LoraConfig) -> float | None:
    """The alpha that is, over each tensor's rank, its scaling; None where there is no such one."""
    first = next(iter(tensors.values()))
    alpha = float(first.scaling[0]) * first.rank
    for each in (config.alpha, round(alpha), alpha):
        if each and all(
            np.float32(each) / np.float32(pair.rank) == pair.scaling[0] for pair in tensors.values()
        ):
            return float(each)
    return None


def _folded(pair: Pair) -> Pair:
    """The pair whose B has its scaling in it."""
    b = pair.b.astype(np.float32) * pair.scaling[:, None]
    return Pair(pair.a, b, np.ones_like(pair.scaling))


def _file(architecture: str, alpha: float, tensors: Mapping[str, Pair], base: str) -> bytes:
    gguf = requires("gguf")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        if on_hub := _hub.parsed(base):
            writer.add_base_model_repo_url(0, f"{_gguf.HUB}{on_hub.name}")
        for name, pair in tensors.items():
            for end, array in zip(_gguf.ENDS, _gguf.turned(name, pair.a, pair.b), strict=True):
                writer.add_tensor(f"{name}.{end}", np.ascontiguousarray(array, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
