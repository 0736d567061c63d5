"""The page of messages: each heading is words that the package's code still says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
VARIES = "\0"  # what stands in the place of a value


def said(tree):
    """Every text in the code, docstrings aside, with `VARIES` for each value in it."""
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else VARIES for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in plain:
            yield str(node.value)


@pytest.fixture(scope="module")
def messages():
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "jlora").rglob("*.py"))
    return [text for tree in trees for text in said(tree) if " " in text]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_words_of_one_message(heading, messages):
    words = [re.escape(part.strip()) for part in heading.split("…")]
    pattern = re.compile(rf"[ {VARIES}].*?".join(words), re.DOTALL)
    assert [text for text in messages if pattern.search(text)], heading


def test_a_text_that_no_code_says_is_noticed(messages):
    assert len(messages) > 500
    assert not any("matches none of the leaves" in text for text in messages)


def test_each_message_says_what_it_means_and_what_to_do():
    sections = re.split(r"^### .+$", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == len(HEADINGS) >= 20
    for heading, section in zip(HEADINGS, sections, strict=True):
        for part in ("**What it means.**", "**What to do.**"):
            assert section.count(part) == 1, heading
