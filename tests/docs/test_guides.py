"""The guides' code runs as it stands there, and says what they say it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from page_code import printed_in, promises

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
FRAMEWORKS = {"linen", "nnx", "equinox", "haiku", "plain-trees"}  # each trains, and says so
# what each guide promises to print, beside what stands in comments behind its lines
PROMISED = {
    "adapters-are-data": ["(2, 1, 10)"],
    "explain": ["2 factored, 0 materialised"],
    "gguf-adapters": ["the same after llama.cpp's format: True"],
    "peft": ["the same after PEFT's format: True"],
}


@pytest.fixture(scope="module")
def after_readme():
    """The names that README's blocks leave, and what they print: run once."""
    namespace: dict = {}
    printed = printed_in(namespace, README)
    return namespace | {"printed": printed}


@pytest.fixture
def first_example(after_readme, tmp_path, monkeypatch):
    """The same for one page, which goes on with them; its step may donate the adapter."""
    monkeypatch.chdir(tmp_path)
    return after_readme | {"lora": jax.tree.map(jnp.copy, after_readme["lora"])}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("nothing_registered_stays")
def test_a_guide_runs_after_readme(page, first_example):
    text = page.read_text(encoding="utf-8")
    goes_on = "first example" in text  # else the page stands alone, as its reader finds it
    printed = printed_in(first_example if goes_on else {}, text)
    for promised in [*PROMISED.get(page.stem, []), *promises(text)]:
        assert promised in printed
    for recipe, first, second in re.findall(
        r"^([a-z ]+): loss ([\d.]+) -> ([\d.]+)$", printed, re.M
    ):
        assert float(second) < float(first), recipe
    assert (page.stem in FRAMEWORKS) == bool(re.search(r": loss ([\d.]+) -> ", printed))
