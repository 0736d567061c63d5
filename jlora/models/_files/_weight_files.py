"""Which files of a Hugging Face folder hold the weights, and what their headers say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jlora import _words
from jlora._files import read_json_object, require_regular
from jlora._safetensors import Header, headers
from jlora.models._files._shards import INDEX

_WHOLE = "model.safetensors"
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
# What may stand beside the weights: an adapter, the same weights under their maker's own names.
_BESIDE = re.compile(r"(adapter|adapters|adapter_model|consolidated|optimizer)\b.*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def tensors_of(directory: Path) -> dict[str, Header]:
    """Every tensor of the weights, by name, and what its file says of it.

    Raises:
        ValueError: when there are no weights, or not all; when a tensor is there twice; when the
            index and the files are not of one model; when a file is damaged.
    """
    index = directory / INDEX
    named = _weight_map(index) if index.exists() else {}
    files = _indexed(directory, index, named) if named else _unindexed(directory)
    for file in files:
        require_regular(file)
    found: dict[str, Header] = {}
    problems: list[str] = []
    for file in files:
        for name, header in headers([file]).items():
            if name in named and named[name] != file.name:
                problems.append(f"{name} is in {file.name}, the index says {named[name]}")
            elif name in found:
                problems.append(f"{name} is in {found[name].file.name} and in {file.name}")
            found[name] = header
    problems += [f"{name} is not in {file}" for name, file in named.items() if name not in found]
    if problems:
        of = f"{index} is of another model, or a file is" if named else f"{directory} is ambiguous"
        raise ValueError(f"{of}: get them again{_words.first_few(problems, 8)}")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise ValueError(f"{index}: expected a weight_map, from tensors to files")
    return weight_map


def _indexed(directory: Path, index: Path, named: Mapping[str, str]) -> list[Path]:
    """The files that the index names; none lies outside the folder."""
    names = sorted(set(named.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index}: {outside[0]!r} leads out of the folder")
    if missing := [name for name in names if not (directory / name).exists()]:
        listed = _words.named(missing)
        raise ValueError(
            f"{index} names {listed}, which {'is' if len(missing) == 1 else 'are'} missing: get "
            "the folder again"
        )
    if _WHOLE not in names and (directory / _WHOLE).exists():
        raise ValueError(
            f"{directory} has {_WHOLE} and an index of other files: remove {_WHOLE}, or {INDEX} "
            "and its files, whichever is the old one"
        )
    return [directory / name for name in names]


def _unindexed(directory: Path) -> list[Path]:
    if (directory / _WHOLE).exists():
        return [directory / _WHOLE]
    found = sorted(path for path in directory.glob("*.safetensors"))
    files = [path for path in found if not _BESIDE.fullmatch(path.name)]
    if not files:
        raise ValueError(f"{directory} has no model.safetensors. {_instead(directory, found)}")
    shards = [match for path in files if (match := _SHARD.fullmatch(path.name))]
    for stem, count in sorted({(shard[1], shard[3]) for shard in shards}):
        there = {int(shard[2]) for shard in shards if (shard[1], shard[3]) == (stem, count)}
        absent = int(count) - len(there)
        if absent > 0:
            first = next(number for number in range(1, int(count) + 1) if number not in there)
            raise ValueError(
                f"{directory}: {absent} of the {int(count)} files {stem}-*-of-{count}.safetensors "
                f"are missing, the first is number {first}: get the folder again"
            )
    return files


def _instead(directory: Path, beside: list[Path]) -> str:
    """What to do with a folder that holds something else."""
    if beside and any(path.name.startswith("adapter") for path in beside):
        return f"{beside[0].name} is an adapter: name its base as the model, and it as the adapter"
    if beside:
        return f"{beside[0].name} has other names for its tensors: get the files model*.safetensors"
    if pickles := sorted(path.name for kind in _PICKLES for path in directory.glob(kind)):
        return (
            f"{pickles[0]} is a pickle, which can run any code, and is not read. Where you trust "
            "it, convert it once with transformers: AutoModelForCausalLM.from_pretrained"
            f"({str(directory)!r}).save_pretrained('converted'), then copy the tokenizer's files"
        )
    if files := sorted(path.name for path in directory.glob("*.gguf")):
        return f"It holds {_words.named(files)}: name the file itself"
    return "Get the folder's files again"
