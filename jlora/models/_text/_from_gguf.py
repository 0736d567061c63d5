"""The tokenizer in the header of a GGUF file: byte-level BPE, or SentencePiece's BPE by scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jlora._requires import requires
from jlora.models._text import _pre_tokenizers
from jlora.models._text._tokenizer import Tokenizer

# Kinds of tokens, of the GGUF specification
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def from_gguf(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer in the header of a GGUF file.

    Raises:
        ValueError: when it is of a kind that is not read, or an entry is missing or of no use.
    """
    kind = str(fields.get("tokenizer.ggml.model", "missing"))
    if kind not in _KINDS:
        raise ValueError(
            f"{where}: the tokenizer is {_SAID.get(kind, f'of kind {kind!r}')}, but from GGUF "
            "byte-level BPE ('gpt2') and SentencePiece's BPE ('llama') are read: load the model's "
            "Hugging Face folder"
        )
    tokens = _strings(fields, "tokens", where)
    kinds = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ValueError(f"{where}: the header has not one kind for each of {len(tokens)} tokens")
    try:
        backend = _KINDS[kind](fields, tokens, kinds, where)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{where}: the tokenizer in the header: {error}") from None
    backend.add_special_tokens(_of_kind(tokens, kinds, _CONTROL))
    # found in the text as it is, or where a mark goes before each text, before that goes there
    as_written = kind == "llama" and fields.get("tokenizer.ggml.add_space_prefix", True)
    added = requires("tokenizers").AddedToken
    backend.add_tokens(
        [
            added(token, normalized=not as_written)
            for token in _of_kind(tokens, kinds, _USER_DEFINED)
        ]
    )

    named = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        at = fields.get(f"tokenizer.ggml.{name}_token_id")
        if at is not None and not (isinstance(at, int) and 0 <= at < len(tokens)):
            raise ValueError(f"{where}: the header's {name} token is {at!r}, of {len(tokens)}")
        if at is not None:
            named[name] = at
    stop_ids = tuple(dict.fromkeys(named[n] for n in ("eos", "eot", "eom") if n in named))
    if not stop_ids:
        raise ValueError(f"{where}: the header names no token that ends an answer")
    special = {
        f"{name}_token": tokens[named[name]]
        for name in ("bos", "eos", "unknown", "padding")
        if name in named
    }
    template = fields.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise ValueError(f"{where}: the chat template in the header is no text")
    by_itself = kind == "llama" or fields.get("tokenizer.ggml.pre") in _pre_tokenizers.WHOLE_WORDS
    begins = fields.get("tokenizer.ggml.add_bos_token", by_itself) and "bos" in named
    begin = tokens[named["bos"]] if begins else ""
    return Tokenizer(backend, template, stop_ids, special, where, begin)


def _byte_level(fields: Mapping[str, Any], tokens: list[str], _: Sequence[int], where: str) -> Any:
    tokenizers = requires("tokenizers")
    merges = [tuple(merge.split(" ")) for merge in _strings(fields, "merges", where)]
    if bad := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"{where}: a merge in the header is {' '.join(bad[0])!r}, no pair")
    vocabulary = {token: at for at, token in enumerate(tokens)}
    cut = fields.get("tokenizer.ggml.pre", "default")
    whole = cut in _pre_tokenizers.WHOLE_WORDS
    bpe = tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole)
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = _pre_tokenizers.pre_tokenizer(cut, where)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentencepiece(
    fields: Mapping[str, Any], tokens: list[str], kinds: Sequence[int], where: str
) -> Any:
    """BPE in which the pair that makes the piece of the highest score merges first.

    Spaces are written as U+2581; one stands before each text. What has no piece goes by its bytes.
    """
    tokenizers = requires("tokenizers")
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"{where}: the header has no tokenizer.ggml.scores, one for each token")
    vocabulary = {token: at for at, token in enumerate(tokens)}
    mergeable = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    best_first = sorted(mergeable, key=lambda token: (-scores[vocabulary[token]], token))
    merges = [
        (token[:cut], token[cut:])
        for token in best_first
        for cut in range(1, len(token))
        if token[:cut] in mergeable and token[cut:] in mergeable
    ]
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    spaces = normalizers.Replace(" ", "\u2581")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefixed else spaces
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * prefixed)])
    return backend


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
_SAID = {"bert": "WordPiece ('bert')", "t5": "SentencePiece's Unigram ('t5')", "missing": "missing"}


def _strings(fields: Mapping[str, Any], name: str, where: str) -> list[str]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not (isinstance(values, list) and values and all(isinstance(v, str) for v in values)):
        raise ValueError(
            f"{where}: the header's tokenizer.ggml.{name} is "
            f"{'missing' if values is None else 'no list of texts'}: get the file again, or load "
            "the model's Hugging Face folder"
        )
    return values


def _of_kind(tokens: Sequence[str], kinds: Sequence[int], kind: int) -> list[str]:
    return [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
