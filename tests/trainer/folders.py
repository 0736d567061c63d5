"""Model folders as people have them: each function makes one kind out of a small whole folder."""

import json
import os
import shutil

import gguf_files
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def edit(path, **changes):
    """Changes a JSON file; None removes."""
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def configured(**changes):
    """With other settings in config.json."""
    return lambda folder: edit(folder / "config.json", **changes)


def renamed(rule):
    """With other names of tensors."""

    def change(folder):
        tensors = load_file(folder / WEIGHTS)
        save_file({rule(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)

    return change


def with_tensors(make):
    """With further or other tensors: ``make(tensors)`` gives them; None removes."""

    def change(folder):
        tensors = load_file(folder / WEIGHTS)
        tensors = {**tensors, **make(tensors)}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / WEIGHTS)

    return change


def stored_as(name, dtype):
    """With one tensor in another dtype."""
    return with_tensors(lambda tensors: {name: tensors[name].astype(dtype)})


def with_file(name, content=b""):
    """With a further file."""

    def change(folder):
        (folder / name).write_bytes(content)

    return change


def beside(name, tensors):
    """With further tensors in a file of their own."""
    return lambda folder: save_file(tensors, folder / name)


def without(*names):
    """Without these files."""

    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def in_shards(folder, *, index=True):
    """The tensors in two files, behind an index or without one."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[:5], names[5:])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    if index:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": weight_map}))


def as_fifo(name):
    """With a FIFO, which never ends, in the place of a file."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def as_large(name, size):
    """With a file of so many bytes, which takes no room on the disk."""

    def change(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return change


def together(*changes):
    """Several changes, one after the other."""

    def change(folder):
        for each in changes:
            each(folder)

    return change


def linked_to(name, target):
    """With a link in the place of a file."""

    def change(folder):
        shutil.move(folder / name, folder / target)
        (folder / name).symlink_to(folder / target)

    return change


FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


def to_gguf(
    folder,
    path,
    *,
    architecture="llama",
    tokenizer="gpt2",
    merges=("Ġ a",),
    header=(),
    tensors=None,
):
    """The folder's model as llama.cpp would store it.

    ``header`` are further entries as (method of the writer, arguments), ``tensors`` further ones.
    """
    settings = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return gguf_files.write(
        path,
        {**settings, "vocab_size": len(vocabulary)},
        load_file(folder / WEIGHTS),
        architecture=architecture,
        header=header,
        further=tensors,
        model=tokenizer,
        tokens=sorted(vocabulary, key=vocabulary.__getitem__),
        merges=merges,
        kinds=[3 if token.startswith("<|") else 1 for token in vocabulary],
        bos=0,
        eos=1,
    )
