"""Text to tokens and back, and a conversation to text by the model's own template."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jlora._files import read_json_object
from jlora._requires import requires

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and chat template.

    Example:
        >>> import tokenizers
        >>> from jlora import models
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> template = "{{ messages[-1].content }}"
        >>> tokenizer = models.Tokenizer(words, template, stop_ids=(0,), special={}, where="tiny")
        >>> tokenizer.encode(tokenizer.render([{"role": "user", "content": "yes"}]))
        [1]
    """

    backend: Any  # tokenizers.Tokenizer
    template: str | None
    stop_ids: tuple[int, ...]  # tokens that end an answer
    special: Mapping[str, str]  # bos_token, eos_token and the like, as templates know them
    where: str

    def encode(self, text: str) -> list[int]:
        """The tokens of the text; special tokens in it are recognised, none are added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special tokens left out."""
        return self.backend.decode(list(tokens), skip_special_tokens=True)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model expects it, by its own Jinja template (sandboxed).

        Raises:
            ValueError: when the model has no template, or the template refuses the messages.
        """
        if self.template is None:
            raise ValueError(
                f"{self.where} has no chat template, so a conversation can't be written for it: "
                "take an instruction-tuned model"
            )
        jinja2 = requires("jinja2")
        try:
            return _compiled(self.template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special,
            )
        except (jinja2.TemplateError, TypeError, OverflowError) as error:
            raise ValueError(f"the chat template of {self.where}: {error}") from error


def _compiled(template: str) -> Any:
    jinja2 = requires("jinja2")
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


# Byte-level BPE differs between models only in how text is cut before merging. GGUF names the cut.
_GPT4_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {"llama-bpe": _GPT4_CUT % "1,3", "llama3": _GPT4_CUT % "1,3", "qwen2": _GPT4_CUT % "1"}


def _pre_tokenizer(name: str, where: str) -> Any:
    tokenizers = requires("tokenizers")
    cutters = tokenizers.pre_tokenizers
    if name in ("gpt-2", "default"):
        return cutters.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return cutters.Sequence(
            [cutters.Digits(individual_digits=True), cutters.ByteLevel(add_prefix_space=False)]
        )
    if name in _CUTS:
        cut = cutters.Split(tokenizers.Regex(_CUTS[name]), behavior="isolated")
        return cutters.Sequence([cut, cutters.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join(("gpt-2", "smollm", *_CUTS))
    raise ValueError(f"{where}: the pre-tokenizer is {name!r}, but jlora.models knows {known}")


def from_gguf(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer in the header of a GGUF file (byte-level BPE).

    Raises:
        ValueError: when it is of another kind.
    """
    tokenizers = requires("tokenizers")
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"{where}: the tokenizer is of kind {kind!r}, but only byte-level BPE ('gpt2') is read "
            "from GGUF: load the model's Hugging Face folder"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    try:
        pairs = tokenizers.models.BPE(vocab=vocabulary, merges=merges)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{where}: the tokenizer in the header: {error}") from None
    backend = tokenizers.Tokenizer(pairs)
    backend.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre", "default"), where)
    backend.decoder = tokenizers.decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    control, user_defined = 3, 4  # of the GGUF specification
    backend.add_special_tokens([t for t, k in zip(tokens, kinds, strict=True) if k == control])
    backend.add_tokens([t for t, k in zip(tokens, kinds, strict=True) if k == user_defined])
    names = ("eos", "eot", "eom")
    ids = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    stop_ids = tuple(dict.fromkeys(at for at in ids if at is not None))
    if not stop_ids:
        raise ValueError(f"{where}: the header names no token that ends an answer")
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for name in ("bos", "eos", "unknown", "padding")
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    return Tokenizer(backend, fields.get("tokenizer.chat_template"), stop_ids, special, where)


def from_huggingface(directory: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; ``settings`` is its config.json.

    Raises:
        ValueError: when a file is missing or can't be read.
    """
    tokenizers = requires("tokenizers")
    path = directory / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(
            f"{path}: expected a tokenizer of the tokenizers library: {error}"
        ) from None
    own = _json_if_there(directory / "tokenizer_config.json")
    template_file = directory / "chat_template.jinja"
    template = own.get("chat_template")
    if template_file.exists():
        template = template_file.read_text(encoding="utf-8")
    elif isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = own.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[name] = value
    generation = _json_if_there(directory / "generation_config.json")
    stops: list[Any] = []
    for source in (generation, settings):
        value = source.get("eos_token_id")
        stops += value if isinstance(value, list) else [value]
    stops.append(backend.token_to_id(special["eos_token"]) if "eos_token" in special else None)
    stop_ids = tuple(dict.fromkeys(at for at in stops if at is not None))
    if not stop_ids:
        raise ValueError(
            f"{directory}: none of generation_config.json, config.json and tokenizer_config.json "
            "names a token that ends an answer (eos_token_id)"
        )
    return Tokenizer(backend, template, stop_ids, special, str(directory))


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}
