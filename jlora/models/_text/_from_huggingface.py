"""The tokenizer of a Hugging Face folder: tokenizer.json and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora._files import read_json_object, require_regular
from jlora._requires import requires
from jlora.models._text._tokenizer import Tokenizer


def from_huggingface(directory: Path, settings: Mapping[str, Any], *, writes: bool) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; ``settings`` is its config.json.

    A model that ``writes`` must name what ends an answer.

    Raises:
        ValueError: when a file is missing or can't be read.
    """
    tokenizers = requires("tokenizers")
    path = directory / "tokenizer.json"
    require_regular(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(
            f"{path}: expected a tokenizer of the tokenizers library: {error}"
        ) from None
    own = _json_if_there(directory / "tokenizer_config.json")
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
    if odd := [at for at in stop_ids if type(at) is not int or backend.id_to_token(at) is None]:
        raise ValueError(f"{directory}: eos_token_id is {odd[0]!r}, which is no token's number")
    if writes and not stop_ids:
        raise ValueError(
            f"{directory}: none of generation_config.json, config.json and tokenizer_config.json "
            "names a token that ends an answer (eos_token_id)"
        )
    begin = _begin(backend)
    around = backend.post_processor
    backend.post_processor = None  # adds that token, and moves offsets
    backend.no_padding()
    backend.no_truncation()
    template = template_in(directory, own)
    return Tokenizer(backend, template, stop_ids, special, str(directory), begin, around=around)


def template_in(directory: Path, own: Mapping[str, Any]) -> str | None:
    """The folder's chat template; ``own`` is its tokenizer_config.json.

    Raises:
        ValueError: when it can't be read, or is no text.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} can't be read: {error}") from None
    template = own.get("chat_template")
    if isinstance(template, list):  # several, by name
        if not all(isinstance(entry, dict) for entry in template):
            raise ValueError(f"{directory / 'tokenizer_config.json'}: the chat_template is no text")
        template = {each.get("name"): each.get("template") for each in template}.get("default")
    if not isinstance(template, str | None):
        raise ValueError(f"{directory / 'tokenizer_config.json'}: the chat_template is no text")
    return template


def _begin(backend: Any) -> str:
    """The special token that the tokenizer itself puts before a text, or nothing."""
    around = backend.encode("", add_special_tokens=True).tokens
    before = backend.encode("a", add_special_tokens=True).tokens[:1]
    return before[0] if before and before == around[:1] else ""


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}
