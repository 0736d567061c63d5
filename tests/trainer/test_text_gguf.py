"""Tokenizers out of GGUF headers as they really come: read, or refused by what is wrong."""

import pytest

from jlora.models._text._from_gguf import from_gguf

PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "<turn>"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0, 0, 0, 0, -3, -4, -5, -1, -2, 0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 4],
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def tokens(header, text):
    tokenizer = from_gguf({**SENTENCEPIECE, **header}, "here")
    return [PIECES[at] for at in tokenizer.encode(text)]


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes():
    assert tokens({}, "ab ab") == ["▁ab", "▁ab"]
    assert tokens({}, "abba\n") == ["▁ab", "b", "a", "<0x0A>"]
    assert tokens({}, "</s>ab<turn>") == ["</s>", "▁ab", "<turn>"]
    assert tokens({"tokenizer.ggml.add_space_prefix": False}, "ab ab<turn>") == [
        "ab", "▁ab", "<turn>",
    ]  # fmt: skip
    assert from_gguf(SENTENCEPIECE, "here").decode([8, 8, 3]) == "ab ab\n"


def test_the_token_before_a_text_is_there_unless_the_header_says_no():
    assert from_gguf(SENTENCEPIECE, "here").begin == "<s>"
    without = {**SENTENCEPIECE, "tokenizer.ggml.add_bos_token": False}
    assert from_gguf(without, "here").begin == ""


BYTE_LEVEL = {**SENTENCEPIECE, "tokenizer.ggml.model": "gpt2"}


@pytest.mark.parametrize(
    ("header", "changes", "message"),
    [
        (SENTENCEPIECE, {"model": "bert"}, r"the tokenizer is WordPiece \('bert'\), but from GGUF"),
        (SENTENCEPIECE, {"model": "t5"}, "the tokenizer is SentencePiece's Unigram"),
        (SENTENCEPIECE, {"model": 7}, "the tokenizer is of kind '7'"),
        (SENTENCEPIECE, {"scores": None}, "no tokenizer.ggml.scores, one for each token"),
        (SENTENCEPIECE, {"tokens": [b"a"]}, "tokenizer.ggml.tokens is no list of texts"),
        (SENTENCEPIECE, {"token_type": [1]}, "has not one kind for each of 10 tokens"),
        (SENTENCEPIECE, {"token_type": 3}, "has not one kind for each of 10 tokens"),
        (SENTENCEPIECE, {"eos_token_id": 99}, "the header's eos token is 99, of 10"),
        (SENTENCEPIECE, {"eos_token_id": None}, "names no token that ends an answer"),
        (BYTE_LEVEL, {}, "tokenizer.ggml.merges is missing"),
        (BYTE_LEVEL, {"merges": ["a"]}, "a merge in the header is 'a', no pair"),
        (BYTE_LEVEL, {"merges": ["a b"], "pre": "odd"}, "the pre-tokenizer is 'odd'"),
    ],
)
def test_a_header_that_can_not_be_used_is_one_clear_error(header, changes, message):
    changed = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        from_gguf({**header, **changed}, "here")
