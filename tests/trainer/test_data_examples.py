"""Encoded examples in one array: the same batches, in memory or from a file."""

import hashlib
import random

import numpy as np
import pytest

from jlora.data import (
    Batches,
    Example,
    Examples,
    Labelled,
    LabelledBatches,
    encode,
    encode_labelled,
)
from jlora.data import _examples as module

RNG = random.Random(3)
EXAMPLES = [
    Example([RNG.randrange(9999) for _ in range(length)], list(range(length // 2, length - 1)))
    for length in (RNG.randrange(5, 200) for _ in range(333))
]


def digest(examples):
    found = hashlib.sha256()
    for options in ({}, {"shuffle": False}, {"shapes": 1}, {"shapes": 5, "seed": 9}):
        batches = Batches(examples, batch_size=7, **options)
        for step in range(3 * batches.per_epoch):
            for name, array in batches(step).items():
                found.update(f"{name}{array.shape}".encode() + array.tobytes())
            found.update(str(batches.tokens(step)).encode())
    return found.hexdigest()


def test_batches_of_version_0_1_are_those_of_today():
    """A resumed run goes on with the rows that it would have had: another digest would not."""
    assert digest(EXAMPLES) == "8f05369b76472830bb9dfecfd525d9b1a06e054571b0e74cb592dd1049f08e68"
    assert digest(Examples.of(EXAMPLES)) == digest(EXAMPLES)


def test_examples_are_a_sequence():
    examples = Examples.of(EXAMPLES)
    assert list(examples) == EXAMPLES
    assert (examples[-1], examples[7]) == (EXAMPLES[-1], EXAMPLES[7])
    assert list(examples[4:9:2]) == EXAMPLES[4:9:2]
    with pytest.raises(IndexError, match="example 333 of 333"):
        examples[333]


class Letters:
    stop_ids, begin = (10,), ""

    def encode(self, text):
        return list(text.encode())

    def framed(self, text, second="", *, max_length=None):
        letters = self.encode(text + second)[:max_length]
        return letters, ([0] * len(text) + [1] * len(second))[:max_length]


def test_many_tokens_go_to_a_file(tmp_path, monkeypatch):
    rows = [[{"role": "text", "content": "x" * n}] for n in range(1, 60)]
    alone, report = encode(rows, Letters(), max_length=50)
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    for _ in range(2):  # a second run writes them anew
        kept, again = encode(rows, Letters(), max_length=50, folder=tmp_path / "new")
        assert (list(kept), again) == (list(alone), report)
    written = np.fromfile(tmp_path / "new" / "tokens.int32", np.int32)
    assert written.tolist() == [token for example in alone for token in example.tokens]


def test_texts_with_labels_go_to_files_as_well(tmp_path, monkeypatch):
    rows = [{"text": "x" * n, "second": "y" * (n % 4) or "z", "label": n % 3} for n in range(1, 60)]
    options = {"labels": ("0", "1", "2"), "max_length": 50}
    alone, report = encode_labelled(rows, Letters(), **options)
    assert alone[5] == Labelled([120] * 6 + [121] * 2, [0] * 6 + [1] * 2, 0)
    assert list(Examples.of(alone)) == list(alone)
    assert list(alone[3:9:2]) == list(alone)[3:9:2]
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    kept, again = encode_labelled(rows, Letters(), **options, folder=tmp_path / "new")
    assert (list(kept), again) == (list(alone), report)
    written = {
        path.name: np.fromfile(path, np.int32).tolist() for path in (tmp_path / "new").iterdir()
    }
    for name in ("tokens", "types"):
        assert written[f"{name}.int32"] == [each for row in alone for each in getattr(row, name)]
    one, other = (LabelledBatches(each, batch_size=7, seed=5) for each in (list(alone), kept))
    for step in range(one.per_epoch):
        for name, values in one(step).items():
            np.testing.assert_array_equal(values, other(step)[name])
