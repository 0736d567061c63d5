import json

import pytest

from jlora.data import hold_out, read_rows


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_three_kinds_of_rows_become_conversations(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    path = write(
        tmp_path / "rows.jsonl",
        json.dumps({"messages": turns, "id": 7}),
        json.dumps({"prompt": "käse?", "completion": "ja"}),
        json.dumps({"instruction": "Add.", "input": "1, 2", "output": "3"}),
        json.dumps({"instruction": "Greet.", "input": "", "output": "hello"}),
    )
    assert read_rows(path) == [
        turns,
        [{"role": "user", "content": "käse?"}, {"role": "assistant", "content": "ja"}],
        [{"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}],
        [{"role": "user", "content": "Greet."}, {"role": "assistant", "content": "hello"}],
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2: empty"),
        ("{", "line 2: not JSON: Expecting property name"),
        ("[1]", "line 2: a JSON list where an object was expected"),
        ("{}", "line 2: an object without keys"),
        ('{"text": "a"}', r"line 2: no known keys, only \['text'\]"),
        ('{"prompt": "a"}', r"line 2: 'completion' is missing \(found \['prompt'\]\)"),
        ('{"prompt": "a", "completion": " "}', "line 2: 'completion' is empty"),
        ('{"prompt": "a", "completion": 3}', "line 2: 'completion' is a number, not text"),
        ('{"messages": []}', "line 2: 'messages' is no list of messages, or an empty one"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "message 1 has the role 'bot'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "last message is the user's"),
        ('{"messages": [{"role": "assistant"}]}', "message 1: 'content' is missing"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, line, message):
    good = '{"prompt": "a", "completion": "b"}'
    path = write(tmp_path / "rows.jsonl", good, line, good)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: 1 of 3 lines can't be used")
    assert "Expected one JSON object a line" in str(caught.value)


def test_all_bad_lines_are_counted_and_the_first_are_shown(tmp_path):
    path = write(tmp_path / "rows.jsonl", *["{}"] * 12)
    with pytest.raises(ValueError, match="12 of 12 lines can't be used") as caught:
        read_rows(path)
    assert "line 5:" in str(caught.value)
    assert "line 6:" not in str(caught.value)
    assert "and 7 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00", r"is no UTF-8 text \(byte 0\)"),
        (b"a\x00b", "is no text: it holds zero bytes"),
    ],
)
def test_a_file_of_the_wrong_kind_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl can't be read: No such file"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="can't be read: Is a directory"):
        read_rows(tmp_path)


def test_held_out_rows_are_not_trained_on_even_when_repeated(tmp_path):
    line = '{{"prompt": "{}", "completion": "b"}}'
    rows = read_rows(write(tmp_path / "rows.jsonl", *[line.format(i % 20) for i in range(60)]))
    train, held_out = hold_out(rows, 7, seed=0)
    assert len(held_out) == 7
    asked = {row[0]["content"] for row in held_out}
    assert asked.isdisjoint(row[0]["content"] for row in train)
    assert (train, held_out) == hold_out(rows, 7, seed=0)
    with pytest.raises(ValueError, match="leave none to train on"):
        hold_out(rows, 60, seed=0)
