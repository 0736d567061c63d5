"""What the pages say of the families is what the registry says."""

import runpy
from pathlib import Path

from jlora.models._families import ENCODERS, FAMILIES

ROOT = Path(__file__).parents[2]


def test_the_table_of_families_is_made_from_the_registry():
    script = runpy.run_path(str(ROOT / "docs" / "families.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["written"](page) == page, "run python docs/families.py"
    assert all(f"| `{family}` | " in page for family in (*FAMILIES, *ENCODERS))


def test_readme_counts_the_families():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        f"| Model families that load out of the box | {len(FAMILIES) + len(ENCODERS)} |" in readme
    )
