"""Real chat templates, out of TRL's wheel: what is trained begins with what is generated from."""

import importlib.util
import pathlib
import re

import pytest
import transformers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import models as kinds

from jlora.data import encode
from jlora.models._text._tokenizer import Tokenizer

SPEC = importlib.util.find_spec("trl")
assert SPEC is not None
assert SPEC.origin is not None
FOLDER = pathlib.Path(SPEC.origin).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja")}
SPECIAL = re.compile(r"<\|[^|<>\s]{1,30}\|>|<\uff5c[^\uff5c]{1,30}\uff5c>|<(?:\w+_of_\w+|turn\|)>")
ENDS = (
    "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|return|>", "<|call|>", "<|end|>", "</s>",
    "<|END_OF_TURN_TOKEN|>", "<turn|>", "<end_of_utterance>", "<|eot|>",
    "<\uff5cend▁of▁sentence\uff5c>",
)  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level(specials):
    """A byte-level BPE whose tokens may span a prompt and its answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*specials, *letters, "Ċa", ">a", ":a", "Ġa", "al"]
    merges = [("Ċ", "a"), (">", "a"), (":", "a"), ("Ġ", "a"), ("a", "l")]
    backend = Backend(kinds.BPE(vocab={t: at for at, t in enumerate(vocabulary)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def with_a_mark_in_front(specials):
    """One of Llama 2's kind: a mark goes before each text, spaces are marks, bytes are tokens."""
    letters = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    unknown = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", *specials, *unknown, *letters, "▁a", "\na", ">a", "]▁", "al"]
    merges = [("]", "▁"), ("▁", "a"), ("\n", "a"), (">", "a"), ("a", "l")]
    backend = Backend(
        kinds.BPE(
            vocab={token: at for at, token in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return backend


KINDS = {"byte_level": byte_level, "with_a_mark_in_front": with_a_mark_in_front}


def tokenizer_of(name, kind, template=None):
    template = TEMPLATES[name] if template is None else template
    specials = list(dict.fromkeys([*NAMES.values(), *SPECIAL.findall(template)]))
    backend = KINDS[kind](specials)
    backend.add_special_tokens([AddedToken(each, special=True) for each in specials])
    stops = tuple(backend.token_to_id(end) for end in ENDS if end in specials)
    return Tokenizer(backend, template, stops, NAMES, name)  # dated today, as transformers


def transformers_of(tokenizer):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, chat_template=tokenizer.template, **NAMES
    )


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "which"}},
            "required": ["city"],
        },
    },
}
ROWS = {
    "one answer": [user("hello you"), answer("all is well")],
    "with a system message": [
        {"role": "system", "content": "Be brief."},
        user("hello you"),
        answer("all is well"),
    ],
    "two answers": [user("hello"), answer("all is well"), user("and now?"), answer("also well")],
}
WITH_TOOLS = [
    user("weather?") | {"tools": [TOOL]},
    answer("", tool_calls=[CALL]),
    {"role": "tool", "content": "sunny", "name": "weather"},
    answer("all is sunny"),
]
TOOL_TEMPLATES = (
    "gemma4", "glm4moe", "gptoss", "llama3_1", "llama3_2", "lfm2_v2", "nemotron_3_nano",
    "qwen2_5", "qwen3", "qwen3_5_think", "qwen3_instruct_2507",
)  # fmt: skip
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def check_begins_as_generation_does(row, tokenizer):
    """Each trained answer stands behind the very tokens that the model would be asked with."""
    examples, _ = encode([row], tokenizer, max_length=100_000)
    prompts = [
        tokenizer.encode(tokenizer.render(row[:turn], add_generation_prompt=True))
        for turn, message in enumerate(row)
        if message["role"] == "assistant"
    ]
    found = []
    for tokens, answers in examples:
        begins = [at for at in answers if at - 1 not in answers]
        assert begins  # of an answer each
        found += [tokens[: at + 1] for at in begins]
    assert found == prompts
    return examples


def text_of(ids, tokenizer):
    """What the tokens stand for, special ones too."""
    if tokenizer.backend.decoder is not None:
        return tokenizer.backend.decode(ids, skip_special_tokens=False)
    return "".join(map(tokenizer.backend.id_to_token, ids)).replace("▁", " ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_is_trained_begins_with_what_is_generated_from(name, kind):
    tokenizer = tokenizer_of(name, kind)
    for row in ROWS.values():
        examples = check_begins_as_generation_does(row, tokenizer)
        learned = [
            text_of([tokens[at + 1] for at in answers], tokenizer) for tokens, answers in examples
        ]
        wanted = [message["content"] for message in row if message["role"] == "assistant"]
        assert all(text in "".join(learned) for text in wanted)
        assert all(tokens[answers[-1] + 1 :] for tokens, answers in examples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_tool_calls_are_learned_and_what_tools_say_is_not(name, kind):
    tokenizer = tokenizer_of(name, kind)
    examples = check_begins_as_generation_does(WITH_TOOLS, tokenizer)
    learned = "".join(
        text_of([tokens[at + 1] for at in answers], tokenizer) for tokens, answers in examples
    )
    assert "weather" in learned
    assert "Ulm" in learned
    assert "all is sunny" in learned
    assert learned.count("sunny") == 1


def test_llama_2s_template_splits_the_token_that_spans_prompt_and_answer():
    tokenizer = tokenizer_of("llama 2", "with_a_mark_in_front", LLAMA_2)
    [example] = check_begins_as_generation_does(ROWS["one answer"], tokenizer)
    tokens = [tokenizer.backend.id_to_token(at) for at in example.tokens]
    # "]▁" is one token to this tokenizer, and the prompt ends with "]"
    assert tokens[-14:] == [
        "]", "▁a", "l", "l", "▁", "i", "s", "▁", "w", "e", "l", "l", "▁", "</s>",
    ]  # fmt: skip
    assert "]▁" in tokenizer.backend.encode(tokenizer.render(ROWS["one answer"])).tokens


ENCLOSING = sorted(name for name in TEMPLATES if "{%- generation" in TEMPLATES[name])
# Their prompts open a thought that they leave out of answers, or write in another way.
OPENING = re.compile("deepseek|nemotron")


@pytest.mark.parametrize("name", ENCLOSING)
def test_what_generation_encloses_is_learned_as_transformers_masks_it(name):
    tokenizer = tokenizer_of(name, "byte_level")
    theirs = transformers_of(tokenizer)
    turns = [user("hello"), answer("fine"), user("and now?"), answer("better")]
    for row in (turns[:2], turns):
        whole = theirs.apply_chat_template(
            parts(row) if takes_parts(theirs) else row,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        examples, _ = encode([row], tokenizer, max_length=100_000)
        example = examples[-1]
        same = whole["input_ids"][: len(example.tokens)] == example.tokens
        assert same or OPENING.search(name)
        if (
            not same or len(examples) > 1
        ):  # each turn by itself, as it was written when it was the last
            continue
        learned = {at + 1 for at in example.answers}
        enclosed = {at for at, its in enumerate(whole["assistant_masks"]) if its}
        # some prompts open the thought that such templates enclose whole: that much is given
        for turn, message in enumerate(row):
            if message["role"] == "assistant":
                prompt = tokenizer.render(row[:turn], add_generation_prompt=True)
                at = len(tokenizer.encode(prompt)) - 1
                while at in enclosed - learned:
                    enclosed.discard(at)
                    at -= 1
        assert learned == enclosed


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_conversations_are_written_as_transformers_writes_them(name):
    tokenizer = tokenizer_of(name, "byte_level")
    theirs = transformers_of(tokenizer)
    rows = [(ROWS["one answer"], None), (ROWS["two answers"], None), (ROWS["one answer"][:1], None)]
    if name in TOOL_TEMPLATES:
        rows += [(WITH_TOOLS, [TOOL])]
    for row, tools in rows:
        plain = [{key: value for key, value in m.items() if key != "tools"} for m in row]
        for prompt in (True, False):
            wanted = theirs.apply_chat_template(
                parts(plain) if takes_parts(theirs) else plain,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            got = tokenizer.render(row, add_generation_prompt=prompt)
            assert got == wanted


def takes_parts(theirs):
    """Whether the template takes contents that are lists and no others."""
    try:
        return "hello" not in theirs.apply_chat_template([user("hello")], tokenize=False)
    except Exception:  # it goes through a text as if it were a list
        return True


def parts(row):
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in row]
