"""Rows beyond memory: what 100 MB of them need while they are read, held out, encoded, batched."""

import json
import subprocess
import sys
import textwrap

import pytest

MB = 10**6
ROWS = 100_000
PROGRAM = """
    import re, sys
    from jlora.data import Batches, _examples, digest, encode, hold_out, open_rows, read_rows

    class EighthLetters:
        stop_ids, begin = (10,), ""

        def encode(self, text):
            return list(text.encode()[::8])

    def memory(name):
        return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

    path, folder = sys.argv[1:]
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    before = memory("VmRSS")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 100 MB, with a row a kB."""
    path = tmp_path_factory.mktemp("large") / "rows.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            file.write(json.dumps({"text": f"{number} ".ljust(987, "x")}) + "\n")
    assert 100 * MB <= path.stat().st_size < 101 * MB
    return path


def growth(work, path, folder):
    """The bytes by which a process grows at most that does this work."""
    program = textwrap.dedent(PROGRAM) + work + '\nprint(memory("VmHWM") - before)'
    command = [sys.executable, "-c", program, path, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_rows_in_memory_need_more_than_their_size(large, tmp_path):
    """The measure measures: what the tests below bound is exceeded without the disk."""
    assert growth("rows = read_rows(path)", large, tmp_path) > 100 * MB


READ = """
rows = open_rows(path, folder=folder)
train, held_out = hold_out(rows, 100, seed=0)
digest(train, held_out)
assert len(train) == 100_000 - 100
"""


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_rows_on_disk_need_a_fraction_of_their_size(large, tmp_path, kind):
    path = large
    if kind == "array":
        path = tmp_path / "rows.json"
        with large.open() as file, path.open("w") as array:
            array.write("[")
            array.writelines(("," if at else "") + line for at, line in enumerate(file))
            array.write("]")
    assert growth(READ, path, tmp_path / "kept") < 25 * MB


ENCODED = """
_examples.IN_MEMORY = 1 << 18  # 1 MiB
rows = open_rows(path, folder=folder)
examples, _ = encode(rows, EighthLetters(), max_length=200, folder=folder)
batches = Batches(examples, batch_size=8)
assert batches(0)["tokens"].shape == (8, 128)
assert batches.per_epoch == 100_000 / 8
"""


def test_tokens_of_many_rows_wait_on_disk(large, tmp_path):
    # the pages of the tokens that were read count as the process's, and are the system's to drop
    assert growth(ENCODED, large, tmp_path) < 25 * MB + 2 * 50 * MB
    assert (tmp_path / "tokens.int32").stat().st_size > 49 * MB
