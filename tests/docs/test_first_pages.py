"""The pages Start and How it works: code prints what they say."""

import pytest
from fast_compiles import compiled_as_ever
from first_pages import DOCS, printed_by, says

# The others train or compile more: tests/wide runs them.
SHORT = [DOCS / "start/install.md", DOCS / "explanation/walk.md"]


@pytest.mark.parametrize("page", SHORT, ids=lambda page: page.stem)
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with compiled_as_ever():
        for promised, found in printed_by(page):
            assert promised is None or says(promised, found), found


@pytest.mark.parametrize(
    ("promised", "found", "same"),
    [
        ("loss 0.41, 7 rows", "loss 0.42,  7 rows\n", True),
        ("loss 0.41, 7 rows", "loss 0.52, 7 rows", False),
        ("loss 0.41, 7 rows", "loss 0.41, 8 rows", False),
        ("loss 0.41, 7 rows", "gain 0.41, 7 rows", False),
        ("apart 2e-07", "apart 9e-07", True),
        ("apart 2e-07", "apart 9e-05", False),
    ],
)
def test_numbers_near_are_the_same_and_words_are_words(promised, found, same):
    assert says(promised, found) == same
