"""Rows beyond memory: what a file of 100 MB needs while it is read, held out, encoded, batched."""

import json
import tracemalloc

import pytest

from jlora.data import Batches, digest, encode, hold_out, open_rows, read_rows
from jlora.data import _examples as module

MB = 10**6
ROWS = 100_000


class EighthLetters:
    """A token for eight letters."""

    stop_ids, begin = (10,), ""

    def encode(self, text):
        return list(text.encode()[::8])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 100 MB, with a row a kB."""
    path = tmp_path_factory.mktemp("large") / "rows.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            file.write(json.dumps({"text": f"{number} ".ljust(987, "x")}) + "\n")
    assert 100 * MB <= path.stat().st_size < 101 * MB
    return path


@pytest.fixture
def peak():
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_rows_on_disk_need_a_tenth_of_their_size(large, tmp_path, peak, kind):
    if kind == "array":
        path = tmp_path / "rows.json"
        with large.open() as file, path.open("w") as array:
            array.write("[")
            array.writelines(("," if at else "") + line for at, line in enumerate(file))
            array.write("]")
        large = path
    tracemalloc.reset_peak()
    rows = open_rows(large, folder=tmp_path / "kept")
    train, held_out = hold_out(rows, 100, seed=0)
    digest(train, held_out)
    assert len(train) == ROWS - 100
    assert peak() < 10 * MB


def test_encoded_rows_need_little_more_than_what_waits_to_be_written(
    large, tmp_path, peak, monkeypatch
):
    monkeypatch.setattr(module, "IN_MEMORY", 1 << 18)  # 1 MiB
    rows = open_rows(large, folder=tmp_path / "kept")
    examples, _ = encode(rows, EighthLetters(), max_length=200, folder=tmp_path / "kept")
    batches = Batches(examples, batch_size=8)
    assert batches(0)["tokens"].shape == (8, 128)
    assert batches.per_epoch == ROWS / 8
    assert (tmp_path / "kept" / "tokens.int32").stat().st_size > 49 * MB
    assert peak() < 20 * MB


def test_rows_in_memory_need_more_than_their_size(large, peak):
    """The measure measures: what these tests bound is exceeded without the disk."""
    read_rows(large)
    assert peak() > 100 * MB
