"""An adapter that replaces another in its folder: a reader sees the old one, the new, or none."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora import checkpoint, peft
from jlora.peft import _tensors

NAMES = {"kernel": "model.proj"}
OLD, NEW = (jlora.LoraConfig(targets="kernel", rank=2, alpha=alpha) for alpha in (3.0, 5.0))
FROZEN, LORA = jlora.split({"kernel": jnp.ones((7, 5))}, OLD, jax.random.key(0))
_, OTHER = jlora.split({"kernel": jnp.ones((7, 5))}, NEW, jax.random.key(1))


def save_as_peft(folder, lora, config, **options):
    peft.save(folder, lora, config, FROZEN, names=NAMES, **options)


WAYS = {
    "jlora": (checkpoint.save, checkpoint.restore),
    "peft": (save_as_peft, lambda folder: peft.load(folder, FROZEN, names=NAMES)),
}


def which(read, folder):
    """The name of the adapter that is there, None where it is refused."""
    try:
        lora, _ = read(folder)
    except ValueError:
        return None
    a, scaling = lora["kernel"].a, float(lora["kernel"].scaling)
    for name, whole in (("old", LORA), ("new", OTHER)):
        if np.array_equal(a, whole["kernel"].a) and scaling == float(whole["kernel"].scaling):
            return name
    pytest.fail("it is of both")


@pytest.mark.parametrize("way", WAYS)
def test_whenever_the_process_dies_the_folder_holds_one_of_them(way, tmp_path, monkeypatch):
    class DeadError(BaseException):
        pass

    save, read = WAYS[way]
    seen, replace = [], os.replace
    for at in range(5):
        folder, calls = tmp_path / str(at), iter(range(99))
        save(folder, LORA, OLD)

        def dies(*paths, calls=calls, at=at):
            if next(calls) == at:
                raise DeadError
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            try:
                save(folder, OTHER, NEW, overwrite=True)
            except DeadError:
                seen.append(which(read, folder))
        save(folder, OTHER, NEW, overwrite=True)  # what is left is in nobody's way
        assert which(read, folder) == "new"
    assert set(seen) <= {"old", "new", None}
    assert seen


def test_files_that_are_replaced_while_they_are_read_are_refused(tmp_path, monkeypatch):
    save_as_peft(tmp_path, LORA, OLD)
    read = _tensors.read

    def replaced_first(*args, **options):
        save_as_peft(tmp_path, OTHER, NEW, overwrite=True)
        return read(*args, **options)

    monkeypatch.setattr(_tensors, "read", replaced_first)
    with pytest.raises(ValueError, match="was replaced while it was read: read it once more"):
        peft.load(tmp_path, FROZEN, names=NAMES)
