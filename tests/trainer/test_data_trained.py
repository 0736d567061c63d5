"""Which turns train, and what a person is shown of them."""

import pytest

from jlora import data, models


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return models.outline(tiny).tokenizer


def row(*contents, **last):
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return [*messages[:-1], {**messages[-1], **last}]


def trained(tokenizer, rows, **options):
    examples, _ = data.encode(rows, tokenizer, max_length=200, **options)
    return [
        tokenizer.spelled([example.tokens[at + 1] for at in example.answers])
        for example in examples
    ]


def test_all_turns_train_or_the_last_one_that_may(tokenizer):
    both = row("1?", "one", "2?", "twö")
    assert trained(tokenizer, [both]) == ["one<|im_end|>twö<|im_end|>"]
    assert trained(tokenizer, [both], train_on="last") == ["twö<|im_end|>"]
    but_one = row("1?", "one", "2?", "two", weight=0)
    assert trained(tokenizer, [but_one], train_on="last") == ["one<|im_end|>"]
    with pytest.raises(ValueError, match="train_on is 'first': expected one of all, last"):
        trained(tokenizer, [both], train_on="first")


def test_a_preview_marks_what_is_trained(tokenizer):
    rows = [row("1?", "one", "2?", "twö"), row("a", "b"), row("c", "d")]
    examples, _ = data.encode(rows, tokenizer, max_length=200)
    first = (
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n[[one<|im_end|>]]\n"
        "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n[[twö<|im_end|>]]"
    )
    told = data.preview(examples, tokenizer, 2)
    heads = [line for line in told.splitlines() if line.startswith("example")]
    counts = [(len(example.tokens), len(example.answers)) for example in examples[:2]]
    assert heads == [
        f"example {at}: {tokens} tokens, {answers} trained"
        for at, (tokens, answers) in enumerate(counts, start=1)
    ]
    assert told.split("\n", 1)[1].startswith(first)
    assert "d<|im_end|>" not in told
    coloured = data.preview(examples, tokenizer, 2, terminal=True)
    assert coloured == told.replace("[[", "\x1b[32m").replace("]]", "\x1b[0m")
    with pytest.raises(ValueError, match="count is 0"):
        data.preview(examples, tokenizer, 0)
