"""The site's pages: code runs and prints what it says, links go somewhere, each is in the index."""

import re
from pathlib import Path

import pytest
from page_code import printed_in, promises

from jlora.peft import _fields

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# test_readme.py runs the guides, of which many go on from README's first example
ALONE = [page for page in PAGES if page.parent.name in ("docs", "commands", "migrating")]
WITH_CODE = [page for page in ALONE if "```python\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_runs_by_itself(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    printed = printed_in({"__name__": page.stem}, text)
    for promised in promises(text):
        assert promised in printed


def anchors(page):
    """What a link can name behind #: headings as MyST spells them, numbered from the second on."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE):
        text += (page.parent / name).read_text(encoding="utf-8")
    titles = re.findall(r"^#{1,3} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    slugs: list[str] = []
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        slugs.append(f"{slug}-{before}" if (before := slugs.count(slug)) else slug)
    return {*slugs, *re.findall(r"^\((.+)\)=$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *PAGES], ids=lambda page: f"{page.parent.name}/{page.stem}"
)
def test_links_and_anchors_of_a_page_go_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *PAGES], ids=lambda page: f"{page.parent.name}/{page.stem}"
)
def test_no_line_of_a_sentence_is_taken_for_a_list(page):
    """A line that begins with ``+ `` or ``1. `` right under one of a paragraph begins a list."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    within = re.findall(r"^[^\W\d_`*(].*\n([-+*] .*|1[.)] .*)$", text, re.MULTILINE)
    assert not within


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    index += "".join(f"{page.parent.name}/{page.read_text()}" for page in DOCS.glob("*/index.md"))
    for page in PAGES:
        assert page.stem == "index" or re.search(rf"(^|/){page.stem}$", index, re.MULTILINE), page


def test_the_page_for_users_of_peft_names_every_field_of_its_configuration():
    page = (DOCS / "migrating/peft.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", page))
    known = {*_fields.HONOURED, *_fields.HARMLESS, *_fields.FIXED} - {"peft_version"}
    assert known - named == set()
