import pytest

from jlora.data import encode


class Letters:
    """A tokenizer of one token a letter, with a chat template like SmolLM2's."""

    stop_ids = (0,)
    begin = ""

    def encode(self, text):
        return [0 if letter == "#" else ord(letter) for letter in text]

    def decode(self, ids):
        return "".join("#" if token == 0 else chr(token) for token in ids)

    def pieces(self, text):
        return self.encode(text), [(at, at + 1) for at in range(len(text))]

    def rendered(self, messages, add_generation_prompt=False):
        return self.render(messages, add_generation_prompt), None

    def render(self, messages, add_generation_prompt=False):
        text = "".join(f"<{m['role'][0]}>{m['content']}#\n" for m in messages)
        return text + "<a>" if add_generation_prompt else text


class Forgetful(Letters):
    """A chat template that shows the last two messages only."""

    def render(self, messages, add_generation_prompt=False):
        return super().render(messages[-2:], add_generation_prompt)


def conversation(*texts):
    roles = ["user", "assistant"] * (len(texts) // 2)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def answers(example):
    return Letters().decode([example.tokens[position + 1] for position in example.answers])


def test_only_the_answer_and_its_end_of_turn_are_learned():
    (example,), report = encode([conversation("2+2?", "four")], Letters(), max_length=99)
    assert Letters().decode(example.tokens) == "<u>2+2?#\n<a>four#"
    assert answers(example) == "four#"
    assert str(report) == "1 rows, none longer than 99 tokens"


def test_every_answer_of_a_longer_conversation_is_learned():
    (example,), _ = encode([conversation("a?", "b", "c?", "dd")], Letters(), max_length=99)
    assert Letters().decode(example.tokens) == "<u>a?#\n<a>b#\n<u>c?#\n<a>dd#"
    assert answers(example) == "b#dd#"


def test_rows_beyond_the_limit_are_cut_and_counted():
    rows = [conversation("q", "short"), conversation("q", "l" * 40), conversation("q" * 40, "a")]
    examples, report = encode(rows, Letters(), max_length=20)
    assert [len(example.tokens) for example in examples] == [15, 20]
    assert answers(examples[1]) == "l" * 11
    assert str(report) == (
        "3 rows, 2 longer than 20 tokens: 1 cut, 1 dropped because nothing of the answer was left"
    )


def test_a_limit_that_leaves_no_answer_is_an_error():
    with pytest.raises(ValueError, match="no row has an answer within the length limit: 1 rows"):
        encode([conversation("question", "a")], Letters(), max_length=5)


def test_a_template_whose_prompt_is_no_beginning_of_the_answered_text_is_an_error():
    with pytest.raises(
        ValueError, match=r"row 1: .* asks for message 4 with 'a>b#.*but writes 'u>c"
    ):
        encode([conversation("a", "b", "c", "d")], Forgetful(), max_length=99)
