import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers import models as kinds

from jlora.data import answerable, encode, without_reasoning
from jlora.models import Tokenizer


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


def test_the_end_of_a_turn_is_learned_where_the_template_writes_it_before_the_next_message():
    late = (
        "{% for m in messages %}{% if not loop.first %}#{% endif %}<{{ m.role }}>{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}#<assistant>{% endif %}"
    )
    [(read, its)] = learned(conversation("q", "ab", "r", "cd"), tokenizer(late))
    assert read == "<user>q#<assistant>ab#<user>r#<assistant>cd#"
    assert its == "ab#cd#"
    [example], _ = encode([conversation("q", "ab")], tokenizer(late), max_length=99)
    prompt = len("<user>q#<assistant>")
    assert len(example.answers) == len(example.tokens) - prompt  # L - P, the end among them


def test_a_text_begins_with_one_mark_though_template_and_tokenizer_both_write_it():
    marked = tokenizer("@" + CHAT)
    mark = marked.backend.token_to_id("@")
    both = processors.TemplateProcessing(single="@ $A", special_tokens=[("@", mark)])
    marked.backend.post_processor = both
    assert marked.backend.encode("q").ids[0] == mark
    [example], _ = encode([conversation("q", "a")], marked, max_length=99)
    assert list(example.tokens).count(mark) == 1
    assert example.tokens[0] == mark


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


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}#{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REWRITING = (  # reasoning goes as soon as another turn follows
    "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}#{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template=CHAT, merges=(), **fields):
    """A tokenizer of one token a letter but for the merges; "#" ends a turn."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *("".join(pair) for pair in merges)]
    backend = Backend(
        kinds.BPE(vocab={t: at for at, t in enumerate(vocabulary)}, merges=list(merges))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["#", "@"])
    stop = backend.token_to_id("#")
    return Tokenizer(backend, template, (stop,), {"eos_token": "#"}, "here", **fields)


def learned(row, tokenizer, **options):
    """What is read and what of it is learned, for each example of a row."""
    examples, _ = encode([row], tokenizer, max_length=999, **options)
    names = tokenizer.backend.id_to_token
    return [
        (
            "".join(map(names, tokens)),
            "".join(names(tokens[position + 1]) for position in answers),
        )
        for tokens, answers in examples
    ]


def test_a_token_that_spans_prompt_and_answer_is_split_there():
    spanning = tokenizer(merges=[(">", "a"), ("a", "b")])
    [(tokens, answers)], _ = encode([conversation("q", "abc")], spanning, max_length=99)
    names = list(map(spanning.backend.id_to_token, tokens))
    assert names[-6:] == ["n", "t", ">", "ab", "c", "#"]
    assert [names[at + 1] for at in answers] == ["ab", "c", "#"]
    whole = spanning.render(conversation("q", "abc"))
    assert ">a" in spanning.backend.encode(whole).tokens
    # an answer's border that is split can't be so within a later prompt: each turn for itself
    assert learned(conversation("q", "abc", "r", "d"), spanning) == [
        ("<user>q#<assistant>abc#", "abc#"),
        ("<user>q#<assistant>abc#<user>r#<assistant>d#", "d#"),
    ]


def test_a_turn_that_the_template_rewrites_is_an_example_of_its_own():
    row = conversation("q", "a", "r", "b")
    row[1]["reasoning_content"], row[3]["reasoning_content"] = "hm", "so"
    assert learned(row, tokenizer(REWRITING), train_reasoning=True) == [
        ("<user>q#<assistant><think>hm</think>a#", "<think>hm</think>a#"),
        ("<user>q#<assistant>a#<user>r#<assistant><think>so</think>b#", "<think>so</think>b#"),
    ]
    _, report = encode([row], tokenizer(REWRITING), max_length=99)
    assert str(report) == (
        "1 rows as 2 examples, none longer than 99 tokens; the reasoning of 1 is not trained on"
    )


def test_reasoning_is_read_and_learned_only_on_request():
    row = conversation("q", "a")
    row[1]["reasoning_content"] = "hm"
    inline = conversation("q", "<think>hm</think>a")
    for each in (row, inline):
        assert learned(each, tokenizer()) == [
            ("<user>q#<assistant><think>hm</think>a#", "<think></think>a#")
        ]
        assert learned(each, tokenizer(), train_reasoning=True) == [
            ("<user>q#<assistant><think>hm</think>a#", "<think>hm</think>a#")
        ]


def test_a_prompt_that_opens_the_reasoning_is_answered_with_its_end():
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}#{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    row = conversation("q", "a")
    assert learned(row, tokenizer(template)) == [
        ("<user>q#<assistant><think>Ċ</think>ĊĊa#", "Ċ</think>ĊĊa#")
    ]
    row[1]["reasoning_content"] = "hm"
    assert learned(row, tokenizer(template), train_reasoning=True) == [
        ("<user>q#<assistant><think>hmĊ</think>ĊĊa#", "hmĊ</think>ĊĊa#")
    ]


def test_an_answer_of_weight_0_is_read_and_not_learned():
    row = conversation("q", "a", "r", "b", "s", "c")
    row[1]["weight"] = row[5]["weight"] = 0
    assert learned(row, tokenizer()) == [("<user>q#<assistant>a#<user>r#<assistant>b#", "b#")]


def test_what_generation_encloses_is_what_is_learned():
    template = CHAT.replace(
        "{{ m.content }}#", "{% if m.role == 'user' %}{{ m.content }}#{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}#!{% endif %}",
    )  # fmt: skip
    # the end of the turn is not enclosed, and learned all the same
    assert learned(conversation("q", "a"), tokenizer(template)) == [("<user>q#<assistant>a#", "a#")]
    nothing = template.replace("{{ m.content }}{% end", "{% end")
    with pytest.raises(ValueError, match=r"row 1: the \{% generation %\} of .* encloses no answer"):
        encode([conversation("q", "a")], tokenizer(nothing), max_length=99)


def test_a_text_is_learned_as_a_whole_between_its_marks():
    row = [{"role": "text", "content": "all"}]
    assert learned(row, tokenizer(begin="@")) == [("@all#", "all#")]
    assert learned([{"role": "text", "content": "@all#"}], tokenizer(begin="@")) == [
        ("@all#", "all#")
    ]
    assert learned(row, tokenizer()) == [("all#", "ll#")]


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("messages", "left_out"),
    [
        ([{"role": "user", "content": "q", "tools": [{"name": "f"}]}], "leaves 'tools' out"),
        ([{"role": "user", "content": "q", "name": "Ann"}], r"message 1: .* 'name' \(user\) out"),
        (
            [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "r"},
            ],
            r"message 2: .* leaves 'tool_calls' \(assistant\) out",
        ),
    ],
)
def test_what_a_template_leaves_out_is_named_with_its_row(messages, left_out):
    good = conversation("q", "a")
    with pytest.raises(ValueError, match=f"row 2: .*{left_out}"):
        encode([good, [*messages, good[1]]], tokenizer(), max_length=99)


def test_a_message_that_a_template_leaves_out_is_named_with_its_row():
    deaf = CHAT.replace("<{{ m.role }}>", "{% if m.role != 'tool' %}<{{ m.role }}>").replace(
        "#{% endfor %}", "#{% endif %}{% endfor %}"
    )
    row = [*conversation("q", "a"), {"role": "tool", "content": "seen"}, *conversation("r", "b")]
    assert len(learned(row[:2], tokenizer(deaf))) == 1
    with pytest.raises(ValueError, match=r"row 1: message 3: .* leaves 'content' \(tool\) out"):
        encode([row], tokenizer(deaf), max_length=99)


def test_a_row_that_the_template_refuses_is_named():
    refusing = "{{ raise_exception('only users') if messages[0].role != 'user' }}" + CHAT
    row = [{"role": "system", "content": "s"}, *conversation("q", "a")]
    assert learned(row, tokenizer(refusing)) == [("<user>sĊĊq#<assistant>a#", "a#")]
    late = [{"role": "assistant", "content": "s", "weight": 0}, *conversation("q", "a")]
    with pytest.raises(ValueError, match="row 2: the chat template of here: only users"):
        encode([conversation("q", "a"), late], tokenizer(refusing), max_length=99)
    with pytest.raises(ValueError, match=r"row 1: .*only users \(the row begins: s\)"):
        answerable([late], tokenizer(refusing), max_length=99)


def test_an_answer_is_read_without_its_reasoning():
    assert without_reasoning("<think>hm</think>\n\n four ") == "four"
    assert without_reasoning("\n</think>\n\nfour") == without_reasoning(" four") == "four"
