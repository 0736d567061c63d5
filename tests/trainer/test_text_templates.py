"""A conversation as a template writes it: its date, its parts, its limits."""

import dataclasses
import signal
import threading
import time

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models as kinds
from tokenizers import pre_tokenizers

from jlora.models._text import _renderer
from jlora.models._text._tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "2+2?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "4"}]


def tokenizer(template, **fields):
    """A tokenizer of one token a byte with the template."""
    letters = ["</s>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(kinds.BPE(vocab={t: at for at, t in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(backend, template, (0,), special, "here", **fields)


def test_a_model_without_a_template_gets_the_default_one():
    messages = [{"role": "system", "content": "Be brief."}, *ANSWERED]
    own = tokenizer(None, begin="<s>")
    assert own.render(messages) == (
        "<s>### System\nBe brief.\n\n### User\n2+2?\n\n### Assistant\n4</s>\n\n"
    )
    without = tokenizer(None)  # one that puts nothing before a text
    assert without.render(ASKED, add_generation_prompt=True) == (
        "### User\n2+2?\n\n### Assistant\n"
    )


def test_the_date_that_a_template_prints_is_the_tokenizers():
    template = "{{ strftime_now('%d %b %Y, %H:%M') }}|{{ messages[0].content }}"
    dated = tokenizer(template, date="2026-02-03")
    assert dated.render(ASKED) == "03 Feb 2026, 00:00|2+2?"
    assert dataclasses.replace(dated, date="2025-12-31").render(ASKED).startswith("31 Dec 2025")


def test_what_generation_encloses_is_noted_and_leaves_no_trace():
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }};{% endgeneration %}{% else %}{{ m.content }};{% endif %}"
        "{% endfor %}"
    )
    conversation = [*ANSWERED, {"role": "user", "content": "sure?"}, ANSWERED[1]]
    text, generated = tokenizer(template).rendered(conversation)
    assert text == "user:2+2?;assistant:4;user:sure?;assistant:4;"
    assert [text[start:end] for start, end in generated] == ["4;", "4;"]
    assert tokenizer(template).rendered(ASKED) == ("user:2+2?;", None)


def test_a_system_message_goes_to_the_first_user_turn_where_a_template_has_no_place_for_it():
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    )
    system = {"role": "system", "content": "Be brief."}
    assert tokenizer(template).render([system, *ANSWERED]) == (
        "[user] Be brief.\n\n2+2? [assistant] 4 "
    )
    with pytest.raises(ValueError, match="the chat template of here: no system role"):
        tokenizer(template).render([system])


TEXT_ONLY = "{% for m in messages %}{{ m.content + ';' }}{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
REPEATED = "{% for m in messages %}{{ m.content }}{% endfor %}"  # of parts, their Python
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "of_text", "of_parts"),
    [
        (TEXT_ONLY, "one;", "one\ntwo;"),
        (PARTS_ONLY, "<one>", "<one><two>"),
        (REPEATED, "one", "one\ntwo"),
        (BOTH, "one", "<one><two>"),
    ],
)
def test_contents_go_in_the_form_that_the_template_takes(template, of_text, of_parts):
    parts = [{"type": "text", "text": text} for text in ("one", "two")]
    assert tokenizer(template).render([{"role": "user", "content": "one"}]) == of_text
    assert tokenizer(template).render([{"role": "user", "content": parts}]) == of_parts


@pytest.mark.parametrize(
    "arguments",
    ["{{ f.arguments | tojson }}", "{{ '' + f.arguments }}", "{{ f.arguments }}"],
)
def test_arguments_of_tool_calls_are_json_whatever_form_the_template_takes(arguments):
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set f = c.function %}"
        "{{ f.name }}(" + arguments + "){% endfor %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "turn", "arguments": {"on": "däck"}}}
    asked = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert tokenizer(template).render(asked) == 'turn({"on": "däck"})'


def test_tools_stand_in_the_first_message_and_reasoning_goes_by_the_templates_name():
    template = (
        "{{ tools | tojson }}{% for m in messages %}"
        "{% if 'thinking' in m %}<{{ m.thinking }}>{% endif %}{{ m.content }}{% endfor %}"
    )
    asked = [{**ASKED[0], "tools": [{"name": "turn"}]}, ANSWERED[1] | {"reasoning_content": "2,2"}]
    assert tokenizer(template).render(asked) == '[{"name": "turn"}]2+2?<2,2>4'
    assert tokenizer("{{ tools is none }}").render(ASKED) == "True"


def test_a_role_of_the_developers_is_the_system_where_the_template_knows_none():
    messages = [{"role": "developer", "content": "Be brief."}, *ASKED]
    roles = "{% for m in messages %}{{ m.role }} {% endfor %}"
    assert tokenizer(roles).render(messages) == "system user "
    assert tokenizer(roles + "{# developer #}").render(messages) == "developer user "


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10 ** 10 }}", "it needs more than 1024 MiB of memory"),
        (
            "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
            "it writes more than 16777216 letters",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it calls itself too deeply"),
        ("{{ messages[7].content.nothing }}", "has no element 7"),
        ("{{ messages.append(1) }}", "access to attribute 'append'|not safely callable"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_goes_wrong_is_one_short_error(template, message):
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer(template).render(ASKED)
    assert len(str(caught.value)) < 3000
    assert tokenizer(TEXT_ONLY).render(ASKED) == "2+2?;"  # the next one is not the worse for it


def test_a_template_without_end_is_given_up_and_the_next_one_renders(monkeypatch):
    monkeypatch.setattr(_renderer, "SECONDS", 0.4)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"here: it did not end within 0\.4 seconds"):
        tokenizer(endless).render(ASKED)
    assert time.monotonic() - began < 10
    assert tokenizer(TEXT_ONLY).render(ASKED) == "2+2?;"


def test_an_interrupted_render_leaves_no_answer_for_the_next():
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    # a process in the background of a shell ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    here = threading.get_ident()
    threading.Timer(0.3, signal.pthread_kill, [here, signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tokenizer(endless).render(ASKED)
    finally:
        signal.signal(signal.SIGINT, before)
    assert tokenizer(TEXT_ONLY).render(ASKED) == "2+2?;"


def test_half_a_character_and_a_token_without_a_row_are_named():
    with pytest.raises(ValueError, match="half a character"):
        tokenizer(TEXT_ONLY).encode("a\ud800")
    with pytest.raises(ValueError, match=r"the token 'Ń' has the number 2\d\d, .* has 200 rows"):
        tokenizer(TEXT_ONLY, rows=200).encode("a\xad")
