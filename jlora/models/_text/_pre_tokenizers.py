"""How text is cut before byte-level BPE merges, by the names that GGUF headers have for it.

The names are llama.cpp's; the cuts those of the models' own tokenizer.json.
"""

from __future__ import annotations

from typing import Any

from jlora import _words
from jlora._requires import requires

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English endings
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"


def _gpt4(digits: str) -> str:
    return rf"{_SHORT}|{_WORD}|\p{{N}}{{{digits}}}|{_MARKS}|{_SPACES}"


def _by_case(digits: str, short: str) -> str:
    """Words are cut before a capital that follows a small letter."""
    before, any_case = r"[^\r\n\p{L}\p{N}]?", r"\p{Lm}\p{Lo}\p{M}"
    capital, small = rf"[\p{{Lu}}\p{{Lt}}{any_case}]", rf"[\p{{Ll}}{any_case}]"
    words = rf"{before}{capital}*{small}+{short}|{before}{capital}+{small}*{short}"
    return rf"{words}|\p{{N}}{{{digits}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
# Letters that have a case, as the model's own file lists them, which leaves out some alphabets.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EASTERN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _EASTERN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EASTERN, r"\p{N}")
_SEED = rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"

_BY_GPT2 = (
    *("gpt-2", "default", "olmo", "mpt", "jais", "trillion", "exaone4", "phi-2", "gigachat"),
    *("a.x-4.0", "mellum", "granite-docling"),
)
_BY_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
# Where a word that is a token stays one, whatever merges there are, and a text begins with <s>.
_OF_LLAMA3 = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
)
_CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_OF_LLAMA3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_gpt4("1,3"),)),
    **dict.fromkeys(
        ("qwen2", "stablelm2", "hunyuan", "megrez", "deepseek-r1-qwen", "grok-2"), (_gpt4("1"),)
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (_by_case("1,3", f"{_SHORT}?"),)),
    "tekken": (_by_case("1", ""),),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK_V3),
    "deepseek-llm": _DEEPSEEK,
    "deepseek-coder": _DEEPSEEK_CODER,
    "seed-coder": (_SEED,),
}
WHOLE_WORDS = (*_OF_LLAMA3, "tekken")  # as _OF_LLAMA3


def pre_tokenizer(name: str, where: str) -> Any:
    """The cut of this name.

    Raises:
        ValueError: when there is none.
    """
    tokenizers = requires("tokenizers")
    cutters = tokenizers.pre_tokenizers
    if name in _BY_GPT2:
        return cutters.ByteLevel(add_prefix_space=False)
    if name in _BY_DIGITS:
        return cutters.Sequence(
            [cutters.Digits(individual_digits=True), cutters.ByteLevel(add_prefix_space=False)]
        )
    if name in _CUTS:
        cuts = [cutters.Split(tokenizers.Regex(cut), behavior="isolated") for cut in _CUTS[name]]
        whole = cutters.ByteLevel(add_prefix_space=False, use_regex=False)
        return cutters.Sequence([*cuts, whole])
    known = _words.named((*_BY_GPT2, *_BY_DIGITS, *_CUTS), 99)
    raise ValueError(f"{where}: the pre-tokenizer is {name!r}, but jlora.models knows {known}")
