"""The notebook runs from its first cell to its last and prints what is stored in it."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from promised import problems

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "first-tour.ipynb"


def printed(cell):
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_first_tour_prints_what_is_stored(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    stored = nbformat.read(TOUR, as_version=4)
    ran = NotebookClient(nbformat.read(TOUR, as_version=4), timeout=300).execute()
    told = [
        problem
        for before, after in zip(stored.cells, ran.cells, strict=True)
        for problem in problems(printed(after), printed(before))
    ]
    assert not told
    assert sum(bool(printed(cell)) for cell in stored.cells) >= 8
