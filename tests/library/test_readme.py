"""README's code runs as it stands there, and says what it says; the reference names all."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from page_code import printed_in
from public_names import is_function_or_class, public_names

import jlora

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def first_example():
    """The names that README's blocks leave, and what they print."""
    namespace: dict = {}
    printed = printed_in(namespace, README)
    return namespace | {"printed": printed}


def test_readme_prints_what_it_says(first_example):
    [promised] = re.findall(r"It prints\n\n```\n(.*?)\n```", README, flags=re.DOTALL)
    summary, losses, _ = promised.splitlines()
    assert summary in first_example["printed"]
    assert losses in first_example["printed"]
    assert first_example["difference"] < 1e-4  # a rounding error of its own


def test_readme_is_a_first_page():
    assert len(README.splitlines()) <= 180
    assert len(re.findall(r"^pip install.*train\.py$", README, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^pip install.*pytest$", README, flags=re.MULTILINE)) == 1


MODULES = ("jlora", *(f"jlora.{room}" for room in jlora._MODULES))


def test_every_public_module_is_found_by_its_name():
    """Without an import of its own, which another test of this process may have made."""
    files = [path for path in (ROOT / "jlora").iterdir() if path.suffix in ("", ".py")]
    there = {path.stem for path in files if not path.name.startswith("_")}
    assert set(jlora._MODULES) == there <= set(dir(jlora))
    for name in there:
        assert jlora.__getattr__(name) is importlib.import_module(f"jlora.{name}")


@pytest.mark.parametrize("room", MODULES)
def test_every_public_name_is_in_the_reference_with_a_docstring(room):
    text = "\n".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    names = public_names(room)
    assert names
    assert [
        name for name in names if not re.search(rf":: {re.escape(room)}\.{name}[(\n]", text)
    ] == []
    for name, value in names.items():
        if is_function_or_class(value):
            assert inspect.getdoc(value), name
