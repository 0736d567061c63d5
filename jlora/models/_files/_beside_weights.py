"""What stands beside the weights in a Hugging Face folder: configuration, tokenizer, origin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora._files import read_json_object
from jlora._node import Node
from jlora.models import _families
from jlora.models._files import _own_tokenizer
from jlora.models._files._stacking import Opened
from jlora.models._net._config import DecoderConfig
from jlora.models._vocabulary import HEAD

# Of a folder that is read, what goes along unchanged.
_COPIED = (
    "generation_config.json",
    "*processor_config.json",
    *_own_tokenizer.FILES,
    "LICENSE*",
    "NOTICE*",
)


def read(
    where: Path, opened: Opened, dtype: np.dtype | None, tokenizer_of: Path | None = None
) -> dict[str, bytes]:
    """The files' contents by name; ``dtype`` is the one that the weights get, if it changes.

    A tokenizer in the folder ``tokenizer_of`` stands in place of the model's own.

    Raises:
        ValueError: when one can't be read.
    """
    own = None
    if tokenizer_of is not None:
        own = _own_tokenizer.beside(tokenizer_of, opened.tokenizer, opened.config.vocabulary)
        opened = opened if own is None else dataclasses.replace(opened, tokenizer=own)
    if where.is_file():
        return _made(opened, np.dtype(np.float32) if dtype is None else dtype)
    settings = read_json_object(where / "config.json")
    settings.pop("quantization_config", None)  # the weights are written as what they stand for
    if dtype is not None:  # transformers 5 calls it dtype, earlier releases torch_dtype
        known = [name for name in ("dtype", "torch_dtype") if name in settings]
        settings |= dict.fromkeys(known or ["torch_dtype"], dtype.name)
    if settings.get("vocab_size") != opened.config.vocabulary:
        settings["vocab_size"] = opened.config.vocabulary
    if not opened.config.tied and HEAD in opened.leaves:
        settings["tie_word_embeddings"] = False
    _say_labels(settings, opened)
    copied = _own_tokenizer.files_of(where, _COPIED)
    if tokenizer_of is not None and own is not None:
        copied = _own_tokenizer.in_place_of(copied, tokenizer_of, own)
    return {"config.json": _json(settings), **copied}


def _say_labels(settings: dict[str, Any], opened: Opened) -> None:
    """Makes the settings those of a model with this head, if it has one and they are not."""
    config = opened.config
    family = _families.family_of(config.family, opened.where)
    if not config.labels or config.labels == _families.from_huggingface(settings, "").labels:
        return
    settings.pop("num_labels", None)  # it follows from the names
    whole = _families.to_huggingface(config)
    settings |= {name: whole[name] for name in ("architectures", "id2label", "label2id")}
    its = settings if family.nested is None else settings[family.nested.setting]
    if isinstance(config, DecoderConfig) and its.get("pad_token_id") is None:
        its["pad_token_id"] = _padding(opened)  # without one transformers reads one text at a time


def _padding(opened: Opened) -> int:
    tokenizer = opened.tokenizer
    token = tokenizer.special.get("pad_token") or tokenizer.special.get("padding_token")
    found = None if token is None else tokenizer.backend.token_to_id(token)
    return tokenizer.stop_ids[0] if found is None else found


def provenance(source: str | Path, lora: Mapping[str, Node], metadata: Mapping[str, Any]) -> bytes:
    """What the folder was made of; transformers does not look at it.

    Raises:
        ValueError: when the metadata can't be written as JSON.
    """
    from jlora import __version__

    merged = {path: {"kind": type(n).__name__, "rank": n.rank} for path, n in lora.items()}
    content = {
        "format": "jlora-model",
        "version": 1,
        "jlora": __version__,
        "model": str(source),
        "merged": merged,
        "metadata": dict(metadata),
    }
    try:
        return _json(content)
    except TypeError as error:
        raise ValueError(f"the metadata can't be written as JSON: {error}") from None


def _made(opened: Opened, dtype: np.dtype) -> dict[str, bytes]:
    """For a model of another format."""
    tokenizer = opened.tokenizer
    special = {_HUGGINGFACE.get(name, name): token for name, token in tokenizer.special.items()}
    stops = list(tokenizer.stop_ids)
    ids = {f"{name}_id": tokenizer.backend.token_to_id(token) for name, token in special.items()}
    ids["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if opened.config.labels:
        ids.setdefault("pad_token_id", _padding(opened))
    chosen = {name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")
              if name in ids}  # fmt: skip
    made = {
        "config.json": {
            **_families.to_huggingface(opened.config),
            **chosen,
            "torch_dtype": dtype.name,
        },
        "generation_config.json": chosen,
        "tokenizer_config.json": {
            # which takes tokenizer.json as it is
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": opened.config.max_length,
            "clean_up_tokenization_spaces": False,
            **special,
            **({} if tokenizer.template is None else {"chat_template": tokenizer.template}),
        },
    }
    files = {name: _json(content) for name, content in made.items()}
    return {**files, "tokenizer.json": tokenizer.backend.to_str(pretty=False).encode()}


# GGUF's names of special tokens, where they differ
_HUGGINGFACE = {"unknown_token": "unk_token", "padding_token": "pad_token"}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
