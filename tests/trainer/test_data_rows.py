import json

import pytest

from jlora.data import hold_out, read_rows


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(tmp_path, *values, **options):
    """What is read of the values, one a line, and what is said of them."""
    said = []
    path = write(tmp_path / "rows.jsonl", *map(json.dumps, values))
    return read_rows(path, say=said.append, **options), said


def user(content, **more):
    return {"role": "user", "content": content, **more}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def test_three_kinds_of_rows_become_conversations(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    path = write(
        tmp_path / "rows.jsonl",
        json.dumps({"messages": turns}),
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
        ("{", "line 2: not JSON: Expecting property name"),
        ("[1]", "line 2: a JSON list where an object was expected"),
        ("{}", "line 2: an object without keys"),
        ('{"question": "a"}', r"line 2: no known keys, only \['question'\]"),
        ('{"text": ""}', "line 2: 'text' is empty"),
        ('"a"', "line 2: a JSON string where an object was expected"),
        ('{"prompt": "a\\ud800", "completion": "b"}', "line 2: half a character .* after 'a'"),
        ("[" * 99999, "line 2: not JSON: nested too deeply"),
        ("1" * 5000, "line 2: not JSON: Exceeds the limit"),
        (json.dumps({"messages": eval("[" * 80 + "]" * 80)}), "line 2: nested more than 64 deep"),
        ('{"prompt": "a"}', r"line 2: 'completion' is missing \(found \['prompt'\]\)"),
        ('{"prompt": "a", "completion": " "}', "line 2: 'completion' is empty"),
        ('{"prompt": "a", "completion": 3}', "line 2: 'completion' is a number, not text"),
        ('{"messages": []}', "line 2: 'messages' is no list of messages, or an empty one"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "message 1 has the role 'bot'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "last message is the user's"),
        ('{"messages": [{"role": "assistant"}]}', "message 1: 'content' is missing"),
        ('{"prompt": "a", "completion": "b", "images": ["c"]}', "'images' can't be trained on"),
        ('{"conversations": [{"from": "me", "value": "a"}]}', "message 1 is from 'me', not from"),
        ('{"conversations": [{"from": ["me"]}]}', r"message 1 is from \['me'\], not from"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "message 1: part 1 of 'content' is of the type 'image_url'",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}',
            "message 1: 'weight' is 0.5: expected 0 or 1",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}',
            "every message of the assistant has the weight 0",
        ),
        (
            '{"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}',
            "message 1: 'function_call' is not read any more: say 'tool_calls'",
        ),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]}]}',
            "the arguments of tool call 1 are a number, not an object",
        ),
        (
            '{"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]}',
            "message 1: 'tool_calls' are the assistant's, not the user's",
        ),
        (
            '{"instruction": "a", "output": "b", "history": [["c"]]}',
            "entry 1 of 'history' is no pair",
        ),
        ('{"prompt": "a", "completion": "b", "tools": "[1"}', "'tools': '\\[1' is no JSON"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, line, message):
    good = '{"prompt": "a", "completion": "b"}'
    path = write(tmp_path / "rows.jsonl", good, line, good)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}: 1 of 3 lines can't be used")
    assert "Expected rows (JSON lines, CSV or Parquet) such as" in str(caught.value)


def test_all_bad_lines_are_counted_and_the_first_are_shown(tmp_path):
    path = write(tmp_path / "rows.jsonl", *["{}"] * 12)
    with pytest.raises(ValueError, match="12 of 12 lines can't be used") as caught:
        read_rows(path)
    assert "line 1, line 2, line 3, line 4, line 5 and 7 more: " in str(caught.value)
    assert "line 6" not in str(caught.value)


def test_a_reason_is_told_once_with_the_first_lines_that_have_it(tmp_path):
    bad = ['{"prompt": 1, "completion": ""}', "{}"] * 2 + [f'{{"x{n}": 1}}' for n in range(9)]
    with pytest.raises(ValueError, match="13 of 13 lines can't be used") as caught:
        read_rows(write(tmp_path / "rows.jsonl", *bad))
    lines = str(caught.value).splitlines()[1:]
    assert lines[0].startswith("  line 1, line 3: ")
    assert lines[1].startswith("  line 2, line 4: ")
    told = [line.split(":")[0].strip() for line in lines[2:6]]
    assert told == ["line 5", "line 6", "line 7", "and 6 more"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00", r"is no UTF-8 text \(byte 0\): save it as UTF-8"),
        (b"a\x00b", "is no text: it holds zero bytes"),
    ],
)
def test_a_file_of_the_wrong_kind_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl can't be read: No such file[^.]*$"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"holds no file of rows \(\.jsonl, "):
        read_rows(tmp_path)


def test_an_error_stays_short_whatever_the_rows_hold(tmp_path):
    row = {f"key {at}": "long" * 999 for at in range(999)}
    path = write(tmp_path / "rows.jsonl", *[json.dumps(row)] * 40)
    with pytest.raises(ValueError, match="40 of 40 lines") as caught:
        read_rows(path)
    assert len(str(caught.value).splitlines()) < 10
    assert len(str(caught.value)) < 3000


def test_what_messages_say_beside_their_content_is_kept_in_one_form(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    told = {**call, "function": {"name": "f", "arguments": '{"x": 1}'}}
    flat = {"name": "f", "parameters": {}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        user([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}], name="Ann"),
        {"role": "assistant", "content": None, "tool_calls": [told], "weight": 0},
        {"role": "tool", "content": "", "tool_call_id": "1", "name": "f"},
        answer([{"type": "text", "text": "done"}], reasoning="hm", weight=1, tool_calls=None),
    ]
    [row], said = read(tmp_path, {"messages": messages, "tools": json.dumps([flat])})
    assert row == [
        {
            "role": "developer",
            "content": "Be brief.",
            "tools": [{"type": "function", "function": flat}],
        },
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], name="Ann"),
        answer("", tool_calls=[call], weight=0),
        {"role": "tool", "content": "", "tool_call_id": "1", "name": "f"},
        answer("done", reasoning_content="hm"),
    ]
    assert said == []


def said_by(speaker, text):
    return {"from": speaker, "value": text}


def test_every_shape_of_rows_becomes_a_conversation(tmp_path):
    pair = [user("q"), answer("a")]
    system = {"role": "system", "content": "s"}
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    shapes = [
        ({"prompt": [user("q")], "completion": [answer("a")]}, pair),
        (
            {"prompt": [*pair, user("r")], "completion": "b"},
            [user("q"), answer("a", weight=0), user("r"), answer("b")],
        ),
        (
            {"instruction": "r", "output": "b", "system": "s", "history": [["q", "a"]]},
            [system, *pair, user("r"), answer("b")],
        ),
        (
            {"system": "s", "conversations": [said_by("human", "q"),
             said_by("function_call", '{"name": "f", "arguments": {}}'),
             said_by("observation", "o"), said_by("gpt", "a")]},
            [system, user("q"), answer("", tool_calls=[call]),
             {"role": "tool", "content": "o"}, answer("a")],
        ),
        ({"conversations": pair}, pair),
        ({"text": "all of it"}, [{"role": "text", "content": "all of it"}]),
    ]  # fmt: skip
    rows, said = read(tmp_path, *[row for row, _ in shapes])
    assert rows == [messages for _, messages in shapes]
    assert said == []


def test_rows_that_prefer_an_answer_are_trained_on_it_and_it_is_said(tmp_path):
    asked = [user("q"), answer("a"), user("r")]
    rows, said = read(
        tmp_path,
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [*asked, answer("c")], "rejected": [*asked, answer("d")]},
        {"prompt": asked, "chosen": [*asked, answer("c")], "rejected": [answer("d")]},
    )
    both = [user("q"), answer("a", weight=0), user("r"), answer("c")]
    assert rows == [[user("q"), answer("a")], both, both]
    [line] = said
    assert line.endswith("left aside: 'rejected' (training is on 'chosen') (3 times)")


def test_keys_that_say_nothing_here_are_left_aside_and_named(tmp_path):
    messages = [user("q", stamp=3), answer("a")]
    rows, [line] = read(tmp_path, {"messages": messages, "id": 7}, {"messages": messages, "id": 8})
    assert rows == [[user("q"), answer("a")]] * 2
    assert line.endswith("rows.jsonl: left aside: 'id' (2 times), 'stamp' of messages (2 times)")
    with pytest.warns(UserWarning, match="left aside: 'id'"):
        read_rows(tmp_path / "rows.jsonl")


def test_columns_name_the_keys_that_rows_have(tmp_path):
    named = {"prompt": "question", "completion": "answer"}
    rows, said = read(tmp_path, {"question": "q", "answer": "a", "prompt": "x"}, columns=named)
    assert (rows, said) == ([[user("q"), answer("a")]], [])
    with pytest.raises(
        ValueError, match=r"'reply' is missing or empty \(found \['answer', 'prompt'"
    ):
        read(tmp_path, {"question": "q", "answer": "a", "prompt": "x"}, columns={"text": "reply"})
    with pytest.raises(ValueError, match="columns: 'question' is none of messages, system, "):
        read(tmp_path, columns={"question": "prompt"})


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


def test_as_many_rows_as_one_are_held_out():
    rows = [[{"role": "user", "content": f"{n}?"}] for n in range(10)]
    with pytest.raises(ValueError, match="-3 rows to hold out: expected at least 1"):
        hold_out(rows, -3, seed=0)
