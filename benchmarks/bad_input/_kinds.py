"""The kinds of files that people give: a whole one of each, how it is damaged, how it is read."""

import dataclasses
import functools
import importlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers

import jlora
from benchmarks.bad_input import _damage
from benchmarks.bad_input._damage import Damage
from jlora import data, models, peft
from jlora.models._families import FAMILIES
from jlora.models._families._bookkeeping import BOOKKEEPING
from jlora.peft import _fields

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS = (
    {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
    {"prompt": "three", "completion": "four"},
    {"instruction": "five", "input": "six", "output": "seven"},
    {"conversations": [{"from": "human", "value": "eight"}, {"from": "gpt", "value": "nine"}]},
)


MERGES = [("a", "b"), ("\u0120", "a")]
CONFIG = models.DecoderConfig(
    vocabulary=9, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=12, max_length=64,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file."""

    specimen: Callable[[Path], Path]  # writes a whole one
    damaged: Callable[[Path, Path, random.Random], Damage]  # (specimen, where, ...)
    read: Callable[[Path, Damage], str | None]  # what was accepted and says nothing, if so


# rows


def rows(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def damaged_rows(specimen: Path, at: Path, rng: random.Random) -> Damage:
    content = specimen.read_bytes()
    if rng.random() < 0.4:
        content, damage = _damage.of_bytes(content, rng)
    else:
        every, damage = _damage.of_json([json.loads(line) for line in content.splitlines()], rng)
        content = b"\n".join(map(_damage.written, every))
    at.with_suffix(".jsonl").write_bytes(content)
    return damage


def read_rows(at: Path, damage: Damage) -> str | None:
    read = data.read_rows(at.with_suffix(".jsonl"), say=lambda line: None)
    known = " ".join(data.text_of(message) for row in read for message in row)
    value = damage.after
    if damage.path and isinstance(value, str) and value.strip() and value not in known:
        return None if damage.path[-1] in ("role", "from") else "the text is in no row"
    return None


# model folders


def model_folder(path: Path) -> Path:
    flat = {
        "/".join(key.key for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(_whole_params())
    }
    tensors: dict[str, np.ndarray] = {}
    for name, stored in FAMILIES["llama"].leaves.items():
        stacked = name.startswith("layers/")
        for layer in range(CONFIG.layers if stacked else 1) if name in flat else ():
            value = flat[name][layer] if stacked else flat[name]
            tensors |= models.to_stored(stored, layer, value)
    path.mkdir()
    words = ("<|user|>", "<|assistant|>", "<|end|>", "a", "b", "ab", "c", "\u0120", "\u0120a")
    vocabulary = {word: at for at, word in enumerate(words)}
    pairs = tokenizers.models.BPE(vocab=vocabulary, merges=MERGES)
    backend = tokenizers.Tokenizer(pairs)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = tokenizers.decoders.ByteLevel()  # type: ignore
    backend.add_special_tokens(list(words[:3]))
    backend.save(str(path / "tokenizer.json"))
    settings = models.to_huggingface(CONFIG) | {"eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        path / "model.safetensors",
    )
    return path


def in_json(file: str) -> Callable[[Path, Path, random.Random], Damage]:
    """Damages one file of JSON in a folder."""

    def damaged(specimen: Path, at: Path, rng: random.Random) -> Damage:
        shutil.copytree(specimen, at)
        content = (specimen / file).read_bytes()
        if rng.random() < 0.2:
            content, damage = _damage.of_bytes(content, rng)
        else:
            value, damage = _damage.of_json(json.loads(content), rng)
            content = _damage.written(value)
        (at / file).write_bytes(content)
        return damage

    return damaged


def read_settings(at: Path, damage: Damage) -> str | None:
    model = models.outline(at)
    if not damage.path or damage.path[0] in BOOKKEEPING:
        return None
    changed = damage.after not in (None, False, "", [], {}) and damage.after != damage.before
    if changed and model.config == CONFIG and damage.path[-1] != "eos_token_id":
        return "the setting changed nothing"
    return None


def read_text(at: Path, damage: Damage) -> str | None:
    tokenizer = models.outline(at).tokenizer
    messages = [{"role": "user", "content": "ab a"}, {"role": "assistant", "content": "cab"}]
    data.encode([messages], tokenizer, max_length=32)
    tokenizer.decode(tokenizer.encode("ab a cab"))
    return None


def damaged_header(specimen: Path, at: Path, rng: random.Random) -> Damage:
    """The header of the safetensors file: names, dtypes, shapes, places."""
    shutil.copytree(specimen, at)
    content = (specimen / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.4:
        changed, damage = _damage.of_bytes(content[: 8 + size], rng)
    else:
        value, damage = _damage.of_json(json.loads(header), rng)
        header = _damage.written(value)
        changed = len(header).to_bytes(8, "little") + header
    (at / "model.safetensors").write_bytes(changed + rest)
    return damage


def read_weights(at: Path, damage: Damage) -> str | None:
    model = models.load(at)
    sums = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(model.params)]
    whole = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(_whole_params())]
    return None if np.allclose(sums, whole) else "other weights"


@functools.cache
def _whole_params() -> Any:
    return models.Decoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]


# GGUF


def gguf_file(path: Path) -> Path:
    sys.path.append(str(Path(__file__).parents[2] / "tests/trainer"))
    folders = importlib.import_module("folders")
    folder = model_folder(path)
    folders.edit(folder / "config.json", rope_theta=10000.0)
    return folders.to_gguf(folder, path.parent / "specimen.gguf", merges=map(" ".join, MERGES))


def damaged_gguf(specimen: Path, at: Path, rng: random.Random) -> Damage:
    """The first half: header and names, before the tensors."""
    content = specimen.read_bytes()
    first = len(content) // 2
    changed, damage = _damage.of_bytes(content[:first], rng)
    at.with_suffix(".gguf").write_bytes(changed + content[first:])
    return damage


def read_gguf(at: Path, damage: Damage) -> str | None:
    models.load(at.with_suffix(".gguf"))
    return None


# adapters


def adapter_folder(path: Path) -> Path:
    model = _model()
    axes = jlora.trace_axes(model.apply, model.params, jnp.zeros((1, 2), int))
    config = jlora.LoraConfig(targets="q_proj/kernel|up_proj/kernel", rank=2)
    _, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    peft.save(path, lora, config, model)
    return path


def _model() -> models.Model:
    return models.Model(_whole_params(), CONFIG, tokenizer=None, name="tiny")  # type: ignore


def read_adapter(at: Path, damage: Damage) -> str | None:
    _, config = peft.load(at, _model())
    whole = jlora.LoraConfig(targets=config.targets, rank=2)
    honoured = damage.path[:1] and damage.path[0] in _fields.HONOURED
    said = damage.after not in (None, False, "", [], {}, 0) and damage.after != damage.before
    # names that find no module change nothing in PEFT either: the file's tensors say what there is
    free = {"base_model_name_or_path", "revision", "target_modules", "exclude_modules",
            "modules_to_save"}  # fmt: skip
    if honoured and said and config == whole and damage.path[0] not in free:
        return "the field changed nothing"
    return None


# templates

_PIECES = (
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ messages }}", "{{ x.y.z }}",
    "{% for i in range(10**9) %}{{ i }}{% endfor %}", "{{ 'a' * 10**9 }}", "{{ 1/0 }}",
    "{% set x = messages %}", "{% if", "}}", "{{ raise_exception('no') }}", "{% generation %}",
    "{% endgeneration %}", "{{ ''.__class__ }}", "{{ messages[99].content }}", "{{ cycler }}",
)  # fmt: skip


def damaged_template(specimen: Path, at: Path, rng: random.Random) -> Damage:
    """A piece put in, mostly between two others, and perhaps some letters gone."""
    shutil.copytree(specimen, at)
    between = [at for at in range(len(TEMPLATE)) if TEMPLATE[:at].endswith(("}", ">"))]
    place = rng.choice(between if rng.random() < 0.8 else range(len(TEMPLATE)))
    piece, gone = rng.choice(_PIECES), rng.choice((0, 0, 0, 5))
    template = TEMPLATE[:place] + piece + TEMPLATE[place + gone :]
    (at / "chat_template.jinja").write_text(template)
    return Damage(f"{piece} at {place}")


KINDS = {
    "rows": Kind(rows, damaged_rows, read_rows),
    "settings": Kind(model_folder, in_json("config.json"), read_settings),
    "tokenizers": Kind(model_folder, in_json("tokenizer.json"), read_text),
    "tokenizer settings": Kind(model_folder, in_json("tokenizer_config.json"), read_text),
    "templates": Kind(model_folder, damaged_template, read_text),
    "headers of weights": Kind(model_folder, damaged_header, read_weights),
    "GGUF": Kind(gguf_file, damaged_gguf, read_gguf),
    "adapters": Kind(adapter_folder, in_json("adapter_config.json"), read_adapter),
}
