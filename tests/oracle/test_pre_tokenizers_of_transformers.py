"""How text is cut before byte-level BPE, against transformers' own reader of GGUF headers."""

import pytest
import tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from jlora.models._text import _pre_tokenizers

MIXED = (
    "It's WE'LL x'Ve 12345 3.14 km/h\r\n\r\n  indented\tTabs   end \n Straße naïve ﬁn Ǆungla "
    'привет МИР 日本語テキスト 한국어 12가3 don\'T <a href="x/y">//c/* */ a+b=c; $100 €5 ½ ٣٤٥ '
    "नमस्ते ไทย e\u0301 👩‍👩‍👧 ...!!! __init__ camelCaseWord HTTPServer2Go\u3000全角、 \u00a0x\n\n   "
)
SHARED = sorted(GGUF_PRE_TOKENIZER_SPLITS.keys() & _pre_tokenizers._CUTS.keys())


def test_both_know_these():
    assert {"llama-bpe", "tekken", "gpt-4o", "qwen2", "smaug-bpe", "dbrx"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_mixed_text_is_cut_as_transformers_cuts_it(name):
    theirs = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated"
    )
    ours = _pre_tokenizers.pre_tokenizer(name, "here").pre_tokenize_str(MIXED)
    assert [span for _, span in ours] == [span for _, span in theirs.pre_tokenize_str(MIXED)]
