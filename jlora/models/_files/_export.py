"""A model, with an adapter merged into it, as a Hugging Face folder.

The weights stream from file to file: one layer of one leaf is read, merged and written before the
next, so that a model larger than the memory can be merged.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora._lora_dict import shared_of
from jlora._node import Node
from jlora.models._families._labels import labels_trained, named
from jlora.models._files import _beside_weights, _complete_folder, _shards, _source
from jlora.models._files._changed_vocabulary import with_vocabulary
from jlora.models._files._fresh_head import with_head
from jlora.models._files._layer_by_layer import Piece, in_file, is_buffer, pieces, shapes_in_file
from jlora.models._files._merged_layers import cast, check_adapter, merged, trained_on
from jlora.models._vocabulary import Vocabulary

_AS_IT_IS = Vocabulary()


def export(
    source: str | Path,
    out: str | Path,
    *,
    lora: Mapping[str, Node] | None = None,
    base: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    metadata: Mapping[str, Any] | None = None,
    keep: tuple[Path, ...] = (),
    vocabulary: Vocabulary = _AS_IT_IS,
    labels: Sequence[str] = (),
    tokenizer_of: Path | None = None,
) -> Path:
    """Writes the model as a folder that transformers and `load` read; gives its path back.

    The folder appears when it is complete. ``W + scaling * A B`` is formed in float32 and cast
    once; what the adapter does not touch keeps its bits, unless ``dtype`` says otherwise.

    Args:
        source: the model, as for `load`.
        out: a new or an empty folder.
        lora: the adapter to merge into it, if any.
        base: the fingerprint of the base that the adapter was trained on, to be compared; several
            where it is a sum.
        dtype: of the weights in the files; those of the source (float32 from GGUF) unless given.
        max_shard_bytes: the largest file; a single larger tensor still has one of its own.
        overwrite: replace a folder that was written here before, once the new one is complete.
        metadata: anything JSON can hold, to stand in ``jlora.json`` beside the model's name.
        keep: further files and folders that ``out`` must not replace.
        vocabulary: what the adapter asks of the base's (`jlora.peft.vocabulary`).
        labels: names for what the adapter's own head for classification scores; without them the
            base's, or ``LABEL_0`` and so on. The folder is then one of such a model.
        tokenizer_of: a folder whose tokenizer and chat template stand in place of the source's.

    Raises:
        ValueError: when the model can't be read, the adapter or the fingerprint is of another, a
            weight has no finite value in ``dtype``, or something else stands at ``out``.
        OSError: when the disk has no room, or the folder can't be written.

    Example:
        Mostly ``jlora.models.export("smollm2", "merged", lora=lora)`` is all. Here the model is
        written first, and there is no adapter:

        >>> import json
        >>> import pathlib
        >>> import tempfile
        >>> import numpy as np
        >>> import safetensors.numpy
        >>> import tokenizers
        >>> from jlora import models
        >>> settings = {
        ...     "model_type": "llama", "vocab_size": 3, "hidden_size": 8, "intermediate_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        ...     "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 0,
        ... }
        >>> config, tensors = models.from_huggingface(settings, "config.json"), {}
        >>> shapes = models.expected_shapes(config)
        >>> stored = models.Model(shapes, config, tokenizer=None, name="tiny").stored
        >>> for path, shape in shapes.items():
        ...     tensors |= models.to_stored(stored[path], 0, np.ones(shape).squeeze())
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "config.json").write_text(json.dumps(settings))
        ...     words.save(f"{folder}/tokenizer.json")
        ...     safetensors.numpy.save_file(tensors, f"{folder}/model.safetensors")
        ...     out = models.export(folder, f"{folder}/merged", dtype="bfloat16")
        ...     sorted(path.name for path in out.iterdir())
        ['config.json', 'jlora.json', 'model.safetensors', 'tokenizer.json']
    """
    lora = lora or {}
    where = _source.located(source)
    out = _complete_folder.claim(Path(out), overwrite=overwrite, sources=(where, *keep))
    opened = _source.opened(where)
    if vocabulary != _AS_IT_IS:
        opened = with_vocabulary(opened, vocabulary)
    if count := labels_trained(lora):
        labels = tuple(labels) or named(count, opened.config)
    if labels and tuple(labels) != opened.config.labels:
        opened = with_head(opened, tuple(labels), lora)
    opened.check()
    opened.check_head()
    check_adapter(opened.config, lora)
    bases = trained_on(opened.config, lora, base)
    given = None if dtype is None else jnp.dtype(dtype)
    if given is not None and given not in _shards.DTYPES.values():
        known = ", ".join(each.name for each in _shards.DTYPES.values())
        raise ValueError(f"dtype is {given.name}: expected one of {known}")
    piece_of: dict[str, Piece] = {}
    tensors: list[_shards.Tensor] = []
    for piece in pieces(opened.config):
        its_dtype = opened.dtype_of(piece.path, piece.layer or 0, piece.shape)
        if given is not None and not is_buffer(opened.config, piece):
            its_dtype = given
        for name, shape in shapes_in_file(opened.config, piece).items():
            piece_of[name] = piece
            tensors.append(_shards.Tensor(name, shape, its_dtype))
    tensors += [
        _shards.Tensor(name, opened.shapes[name], given or opened.dtype(name))
        for name in opened.aside
    ]
    dtypes = {tensor.name: tensor.dtype for tensor in tensors}
    shared = shared_of(lora)
    shards = _shards.plan(tensors, max_shard_bytes)

    @functools.lru_cache(maxsize=1)  # one piece may make many tensors
    def made_of(piece: Piece, dtype: np.dtype) -> Mapping[str, np.ndarray]:
        weight = opened.layer(piece.path, piece.layer or 0, piece.shape)
        for each in bases:
            each.see(piece, weight)
        result = merged(weight, lora.get(piece.path), shared, piece, dtype)
        return in_file(opened.config, piece, result)

    def value(name: str) -> np.ndarray:
        if name not in piece_of:  # of a part of the model that is left as it is
            return cast(opened.read(name), dtypes[name], name)
        return made_of(piece_of[name], dtypes[name])[name]

    companions = _beside_weights.read(where, opened, given, tokenizer_of)
    companions[_complete_folder.MARK] = _beside_weights.provenance(source, lora, metadata or {})
    needed = _shards.bytes_of(shards) + sum(map(len, companions.values()))
    with _complete_folder.complete(out, needed) as aside:
        _shards.write(aside, shards, value)
        for name, content in companions.items():
            (aside / name).write_bytes(content)
    return out
