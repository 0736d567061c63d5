"""Rows wherever people keep them: the same conversations out of every format."""

import gzip
import io
import json
import os
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jlora.data import read_rows

PAIRS = [("2+2?", "4"), ("käse?", 'ja, "gern",\nsehr')]
RECORDS = [{"prompt": question, "completion": answer} for question, answer in PAIRS]
ROWS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in PAIRS
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
TABLE = 'prompt,completion,extra\n2+2?,4,\nkäse?,"ja, ""gern"",\nsehr",\n'


def parquet(values):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), file)
    return file.getvalue()


CONTENTS = {
    "lines.jsonl": LINES,
    "no ending": LINES,
    "blank lines.jsonl": b"\n" + LINES.replace(b"\n", b"\n\n \n"),
    "windows.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "array.json": json.dumps(RECORDS, indent=2).encode(),
    "array in a line.jsonl": json.dumps(RECORDS).encode(),
    "lines.jsonl.gz": gzip.compress(LINES),
    "array.json.zst": zstandard.compress(json.dumps(RECORDS).encode()),
    "frames.jsonl.zst": b"".join(zstandard.compress(line) for line in LINES.splitlines(True)),
    "table.csv": TABLE.encode(),
    "table of a spreadsheet.csv": b"\xef\xbb\xbf" + TABLE.encode(),
    "table.tsv": TABLE.replace(",", "\t").replace("ja\t", "ja,").replace('""\t', '"",').encode(),
    "table.parquet": parquet(RECORDS),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_holds_the_same_rows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONTENTS[name])
    assert read_rows(path) == ROWS


def test_one_object_over_many_lines_is_one_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(RECORDS[0], indent=2))
    assert read_rows(path) == ROWS[:1]


def test_parquet_has_no_keys_that_other_rows_have(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"y": 2}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call, other]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "a"},
    ]
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([{"messages": messages}]))
    [row] = read_rows(path)
    assert row == [messages[0], {**messages[1], "content": ""}, *messages[2:]]


def test_a_folder_is_read_file_by_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "last.csv").write_bytes(CONTENTS["table.csv"])
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / ".hidden.jsonl").write_text("not this")
    (tmp_path / "README.md").write_text("nor this")
    said = []
    assert read_rows(tmp_path, say=said.append) == [*ROWS, *ROWS]
    assert said == [f"4 rows from 2 files: {tmp_path}/a.jsonl, {tmp_path}/b/last.csv"]
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: 1 of 1 lines can't be used"):
        read_rows(tmp_path)


def test_standard_input_is_read_where_a_dash_stands(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    assert read_rows("-") == ROWS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="standard input is empty"):
        read_rows("-")


def test_a_data_set_on_the_hub_is_fetched_by_its_id(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [{**record, "score": None} for record in RECORDS]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_rows("owner/name") == read_rows("owner/name@v1.0:test") == ROWS
    assert asked == [
        ("owner/name", {"split": "train", "revision": None}),
        ("owner/name", {"split": "test", "revision": "v1.0"}),
    ]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"'owner/name' is no file .*: pip install \"jlora\[data\]"
    ):
        read_rows("owner/name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"PAR1 and no more", "is no whole Parquet file"),
        ("rows.parquet", parquet(RECORDS)[:-9], "is no whole Parquet file"),
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "is no whole gzip file"),
        ("rows.jsonl.gz", LINES, "is no whole gzip file"),
        ("rows.jsonl.zst", LINES, "is no whole zstd file"),
        ("rows.jsonl.zst", zstandard.compress(LINES * 9999)[:-9], "its end is missing"),
        ("rows.csv", b"prompt,completion\na,b\na\n", "line 3: 1 fields under 2 names"),
        (
            "rows.csv",
            b"prompt,completion\na,caf\xe9\n",
            "after .*a,caf'.: save it as UTF-8, in Excel",
        ),
        ("rows.csv", b"prompt,completion\n", "rows.csv is empty"),
        ("rows.json", b"[]", "rows.json is empty"),
        ("rows.json", b'[{"prompt": "a"', "line 1: not JSON: "),
        ("rows.json", b'[{"prompt": "a"}]', r"1 of 1 entries can't be used:\n  entry 1: 'compl"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(path)
    assert len(str(caught.value).splitlines()) < 10


def test_a_table_of_excel_is_read_as_it_comes(tmp_path):
    """Semicolons or tabs where a comma stands in numbers, a byte order mark, blank rows."""
    for number, between in enumerate(";\t,"):
        lines = [("prompt", "completion"), ('"7; 5,0\t"', "c"), ("", ""), ("a", "b"), ("", "")]
        text = "\ufeff" + "".join(f"{between.join(line)}\r\n" for line in lines)
        path = tmp_path / f"{number}.csv"
        path.write_bytes(text.encode())
        first, second = read_rows(path)
        assert first[0]["content"] == "7; 5,0\t"
        assert [message["content"] for message in second] == ["a", "b"]


def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", "/dev/zero"):
        with pytest.raises(ValueError, match="is no file but a pipe or a device"):
            read_rows(path)


def test_a_package_that_a_format_needs_is_named(tmp_path, monkeypatch):
    for name, package in (("rows.parquet", "pyarrow"), ("rows.jsonl.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"{package} is needed .*pip install \"jlora\[data\]"):
            read_rows(tmp_path / name)
