"""How text is cut before byte-level BPE, by the names in GGUF headers: written out by hand."""

import pytest

from jlora.models._text import _pre_tokenizers
from jlora.models._text._from_gguf import from_gguf

TEXT = "I'LL say camelCase 12345//x\n 日本語 é.\n"
CUTS = {
    "gpt-2": ["I", "'", "LL", " say", " camelCase", " 12345", "//", "x", "\n", " 日本語", " é", ".",
              "\n"],
    "smollm": ["I", "'", "LL", " say", " camelCase", " ", "1", "2", "3", "4", "5", "//", "x", "\n",
               " 日本語", " é", ".", "\n"],
    "llama-bpe": ["I", "'LL", " say", " camelCase", " ", "123", "45", "//", "x", "\n", " 日本語",
                  " é", ".\n"],
    "qwen2": ["I", "'LL", " say", " camelCase", " ", "1", "2", "3", "4", "5", "//", "x", "\n",
              " 日本語", " é", ".\n"],
    "gpt-4o": ["I'LL", " say", " camel", "Case", " ", "123", "45", "//", "x", "\n", " 日本語", " é",
               ".\n"],
    "tekken": ["I", "'LL", " say", " camel", "Case", " ", "1", "2", "3", "4", "5", "//", "x", "\n",
               " 日本語", " é", ".\n"],
    "deepseek-v3": ["I", "'LL", " say", " camelCase", " ", "123", "45", "//", "x", "\n", " ",
                    "日本語", " é", ".\n"],
    "deepseek-llm": ["I", "'", "LL", " say", " camelCase", " ", "12345", "//", "x", "\n", " ",
                     "日本語", " é", ".", "\n"],
    "deepseek-coder": ["I", "'", "LL", " say", " camelCase", " ", "1", "2", "3", "4", "5", "//",
                       "x", "\n", " ", "日本語", " é", ".", "\n"],
    "seed-coder": ["I", "'LL", " say", " camelCase", " ", "1", "2", "3", "4", "5", "//", "x", "\n",
                   " 日本語", " é", ".", "\n"],
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_text_is_cut_by_the_name(name):
    cut = _pre_tokenizers.pre_tokenizer(name, "here").pre_tokenize_str(TEXT)
    assert [TEXT[slice(*span)] for _, span in cut] == CUTS[name]


@pytest.mark.parametrize(
    ("name", "pieces", "begin"),
    [("llama-bpe", ["abc"], "<s>"), ("tekken", ["abc"], "<s>"), ("qwen2", ["ab", "c"], "")],
)
def test_a_word_that_is_a_token_stays_one_where_the_model_has_it_so(name, pieces, begin):
    tokens = ["<s>", "</s>", "a", "b", "c", "ab", "abc"]
    tokenizer = from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
        },
        "here",
    )
    assert [tokens[at] for at in tokenizer.encode("abc")] == pieces
    assert tokenizer.begin == begin
