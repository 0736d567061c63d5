"""Rows on disk are the rows in memory, read when they are asked for."""

import gzip
import hashlib
import io
import json
import os
import pickle
import sys

import pytest
from test_data_sources import CONTENTS, LINES, RECORDS, ROWS, parquet

from jlora import data, finetune, tasks
from jlora.data import _on_disk, digest, hold_out, open_rows, read_rows

MANY = [{"prompt": f"{n % 31}?", "completion": "ä" * (n + 1), "id": n} for n in range(40)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in MANY))
    return path


def opened(path, **options):
    return open_rows(path, folder=path.parent / "kept", say=lambda line: None, **options)


def entries(folder):
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else None


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_has_the_same_rows_on_disk(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONTENTS[name])
    rows = opened(path)
    assert [rows[1], rows[0], rows[-2]] == [ROWS[1], ROWS[0], ROWS[0]]
    assert list(rows) == ROWS
    in_place = CONTENTS[name].lstrip(b"\xef\xbb\xbf \n")[:1] == b"{"
    assert (entries(tmp_path / "kept") is None) == in_place


def test_rows_are_a_sequence_that_is_picked_from_and_sent_elsewhere(path):
    rows, all_of_them = opened(path), read_rows(path, say=lambda line: None)
    assert len(rows) == len(all_of_them) == 40
    assert list(rows[7:30:3]) == all_of_them[7:30:3]
    assert list(rows.pick([5, 3, 5])) == [all_of_them[at] for at in (5, 3, 5)]
    assert list(pickle.loads(pickle.dumps(rows))) == all_of_them
    for beyond in (40, -41):
        with pytest.raises(IndexError, match=f"row {beyond} of 40"):
            rows[beyond]


def test_names_of_columns_hold_when_a_row_is_read_later(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("q,a,when\n1?,2,today\n")
    rows = opened(path, columns={"prompt": "q", "completion": "a"})
    assert [message["content"] for message in rows[0]] == ["1?", "2"]


def test_holding_out_and_digests_are_those_of_rows_in_memory(path):
    rows, all_of_them = opened(path), read_rows(path, say=lambda line: None)
    train, held_out = hold_out(rows, 7, seed=3)
    assert (list(train), list(held_out)) == hold_out(all_of_them, 7, seed=3)
    assert len(train) < 33  # those that ask the same are gone too
    whole = json.dumps([list(train), list(held_out)])
    assert digest(train, held_out) == hashlib.sha256(whole.encode()).hexdigest()
    assert digest([], all_of_them) != digest(all_of_them, [])


def test_a_folder_of_files_keeps_their_order(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.json").write_bytes(CONTENTS["array.json"])
    (folder / "b.jsonl").write_text(json.dumps({"text": "in between"}))
    (folder / "c.parquet").write_bytes(parquet(RECORDS))
    said = []
    rows = open_rows(folder, folder=tmp_path / "kept", say=said.append)
    assert list(rows) == [*ROWS, [{"role": "text", "content": "in between"}], *ROWS]
    assert said == [f"5 rows from 3 files: {folder}/a.json, {folder}/b.jsonl, {folder}/c.parquet"]


def test_what_was_written_of_a_file_is_found_again_until_the_file_is_another(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    assert list(opened(path)) == ROWS
    [copy] = (tmp_path / "kept").iterdir()
    copy.write_text(json.dumps({"text": "planted"}))
    assert [row[0]["content"] for row in opened(path)] == ["planted"]
    path.write_bytes(gzip.compress(LINES + LINES))
    assert list(opened(path)) == [*ROWS, *ROWS]


def test_standard_input_is_written_once_and_read_from_there_again(tmp_path, monkeypatch):
    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    kept = tmp_path / "kept"
    given(LINES)
    assert list(open_rows("-", folder=kept)) == ROWS
    assert entries(kept) == ["standard-input.jsonl"]
    monkeypatch.setattr(sys, "stdin", None)
    assert list(open_rows("-", folder=kept, again=True)) == ROWS
    given(LINES.splitlines(True)[0])
    assert list(open_rows("-", folder=kept)) == ROWS[:1]
    given(b"")
    with pytest.raises(ValueError, match="standard input is empty"):
        open_rows("-", folder=kept)


def test_rows_that_can_not_be_used_are_named_and_leave_nothing(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*RECORDS, {"prompt": 3}, *RECORDS, {}]))
    with pytest.raises(ValueError, match="2 of 6 entries can't be used") as caught:
        open_rows(path, folder=tmp_path / "deep" / "kept")
    assert "entry 3: 'prompt' is a number, not text\n  entry 6: an object" in str(caught.value)
    assert entries(tmp_path) == ["rows.json"]


def test_a_file_that_is_written_again_meanwhile_is_an_error(path):
    rows = opened(path)
    path.write_text(path.read_text() + json.dumps(MANY[0]) + "\n")
    for read in (lambda: rows[0], lambda: list(rows)):
        with pytest.raises(ValueError, match="was written again since its rows were counted"):
            read()


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(CONTENTS["array.json"])
    with pytest.raises(OSError, match=r"rows\.json/.*\.jsonl could not be written: File exists"):
        open_rows(path, folder=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[{"text": "a"},\n {"text": "b"},\n  x]',
            "line 3: not JSON: Expecting value at column 3",
        ),
        (b'[{"text": "a"} {"text": "b"}]', "line 1: not JSON: Expecting ']' at column 16"),
        (b'[{"text": "a"}] 3', "line 1: not JSON: Extra data at column 17"),
        (b'[{"text": "a"}', "line 1: not JSON: Expecting ']' at column 15"),
        (b'[{"text": "a"}, {"text": "\xff"}]', "not JSON: 'utf-8' codec can't decode"),
        (b"[" * 99999, "entry 1: not JSON: nested too deeply"),
        (b'[{"text": ' + b"1" * 5000 + b"}]", "entry 1: not JSON: Exceeds the limit"),
    ],
)
def test_a_damaged_array_is_named_where_it_breaks(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="can't be used") as caught:
        read_rows(path)
    assert message in str(caught.value)


def test_an_array_comes_out_the_same_however_its_bytes_are_cut():
    from jlora.data._json_array import array

    values = [{"ä": [1, 2.5e3, None, True, "\n]"]}, 12345, "x" * 300, {}, -1]
    text = ("\ufeff" + json.dumps(values, indent=1, ensure_ascii=False)).encode()
    for size in (1, 2, 3, 7, 64, 9999):
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        assert [value for _, value in array(parts, 9999)] == values
    [_, (place, error)] = array([b"[1,", b'"' + b"x" * 100], 50)
    assert (place, str(error)) == ("entry 2", "not JSON: an entry of more than 50 letters")


def test_a_line_that_never_ends_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("jlora.data._formats.LONGEST", 1000)
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_text("x" * 5000)
        with pytest.raises(ValueError, match=r"line 1 is longer than 1\.00 kB: expected a row"):
            read_rows(tmp_path / name)


def test_every_copy_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_bytes(CONTENTS["array.json"])

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    assert entries(tmp_path) == ["rows.json"]


def test_rows_are_parsed_twice_before_a_run_begins(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"prompt": "{n % 13} + 1", "completion": "{n}"}}' for n in range(40)]
    path.write_text("\n".join(lines))
    in_memory = data.read_rows(path)
    wanted = data.hold_out(in_memory, 3, seed=2)
    seen = []
    real = _on_disk.CONVERSATIONS
    counted = real._replace(read=lambda *given: seen.append(1) or real.read(*given))
    monkeypatch.setattr(_on_disk, "CONVERSATIONS", counted)
    rows = data.open_rows(path, folder=tmp_path / "kept")
    train, held_out = data.hold_out(rows, 3, seed=2)
    assert [list(train), list(held_out)] == [list(part) for part in wanted]
    alike = len(rows) - len(train)  # read to be sure, beside those that are held out
    seen.clear()
    data.hold_out(rows, 3, seed=2)
    assert len(seen) == 3 + alike
    found = data.Digest()
    seen.clear()
    for part in (train, held_out):
        assert list(found.through(part)) == list(part)
    assert len(seen) == 2 * (len(train) + 3)  # one of them is the comparison's own
    assert found.hexdigest() == data.digest(*wanted)


def test_a_digest_is_of_rows_that_were_read_to_their_end():
    rows = [[{"role": "text", "content": word}] for word in ("a", "b")]
    found = data.Digest()
    part = iter(found.through(rows))
    next(part)
    with pytest.raises(ValueError, match="not read to its end"):
        found.hexdigest()
    with pytest.raises(ValueError, match="read it to its end first"):
        list(found.through(rows))
    assert list(part) == rows[1:]
    assert found.hexdigest() == data.digest(rows)
    assert data.digest(rows) == hashlib.sha256(json.dumps([rows]).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------
# Texts with labels
# ------------------------------------------------------------------------------------------------

LABELLED = [
    {"text": f"{n % 15}?", "label": n % 4} | ({} if n % 2 else {"second": "ä"}) for n in range(40)
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_rows_with_labels_are_on_disk_as_they_are_in_memory(tmp_path, name):
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in LABELLED).encode()
    contents = {"rows.json": json.dumps(LABELLED).encode(), "rows.jsonl.gz": gzip.compress(lines)}
    path.write_bytes(parquet(LABELLED) if ".parquet" in name else contents.get(name, lines))
    rows = data.open_labelled(path, folder=tmp_path / "kept")
    assert list(rows) == data.read_labelled(path) == LABELLED
    assert list(rows[7:30:3]) == LABELLED[7:30:3]
    assert list(pickle.loads(pickle.dumps(rows))) == LABELLED
    assert (entries(tmp_path / "kept") is None) == (name == "rows.jsonl")
    train, held_out = hold_out(rows, 7, seed=3)
    assert (list(train), list(held_out)) == hold_out(LABELLED, 7, seed=3)
    assert len(train) < 33  # the same texts are gone too, whatever their labels are
    assert digest(train, held_out) == digest(list(train), list(held_out))
    assert data.labels_of(rows) == ("0", "1", "2", "3")


def test_rows_with_labels_are_read_by_their_columns_and_named_where_they_are_wrong(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence,mark,id\nwell,good,1\nill,bad,2\n")
    said, columns = [], {"text": "sentence", "label": "mark"}
    kept = tmp_path / "kept"
    rows = data.open_labelled(path, folder=kept, columns=columns, say=said.append)
    assert rows[1] == {"text": "ill", "label": "bad"}
    assert said == [f"{path}: left aside: 'id' (2 times)"]
    with pytest.raises(ValueError, match="'prompt' is none of text, second, label"):
        data.open_labelled(path, folder=kept, columns={"prompt": "sentence"})
    with pytest.raises(
        ValueError, match=r"'text' is missing[^$]*\{\"text\": ..., \"label\": ...\}"
    ):
        data.open_labelled(path, folder=tmp_path / "none")
    assert entries(tmp_path / "none") is None


def test_the_task_of_labels_leaves_its_rows_on_disk(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    its = finetune.Settings(data=(str(path),), task="classify")
    task = tasks.Classify(its, tmp_path / "kept")
    train, held_out = task.rows()
    assert isinstance(train, data.Rows)
    assert isinstance(held_out, data.Rows)
    assert task.labels == ("0", "1", "2", "3")
