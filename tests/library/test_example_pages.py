"""The pages of the examples are what the examples say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_of_examples_are_made_from_their_files():
    script = runpy.run_path(str(ROOT / "docs" / "example_pages.py"))
    pages = script["pages"]()
    there = {path: path.read_text(encoding="utf-8") for path in script["PAGES"].glob("*.md")}
    assert there == pages, "run python docs/example_pages.py"
    for path in (ROOT / "examples").glob("*.py"):
        assert f"]({path.stem}.md) | " in pages[script["PAGES"] / "index.md"]
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 260


def test_the_table_of_models_of_others_is_what_was_measured():
    script = runpy.run_path(str(ROOT / "docs" / "models_of_others.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["written"](page) == page, "run python docs/models_of_others.py"
