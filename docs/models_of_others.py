"""Writes the table in `models-of-others.md`, out of what the benchmark stored.

python docs/models_of_others.py
"""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parent
PAGE, FOUND = DOCS / "models-of-others.md", DOCS / "models-of-others.json"
BEGIN, END = "<!-- made by docs/models_of_others.py -->\n", "<!-- until here -->\n"
HEAD = """| Package | Model | Value off by | Gradient off by | Weights | `"all-linear"` | Merged |
|---|---|---|---|---|---|---|
"""


def table() -> str:
    """A row for each model, and the reasons for what is merged and left out."""
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    rows, merged, aside = "", "", ""
    for row in found.values():
        uses = sum(each["uses"] for each in row["merged"])
        rows += (
            f"| {row['package']} {row['of']} | {row['model']} | {row['value']:.0e} | "
            f"{row['gradient']:.0e} | {row['weights']} | {row['all_linear']} | "
            f"{uses or 'none'} of {row['uses']} uses |\n"
        )
        name = f"{row['package']} {row['model']}"
        reasons = dict.fromkeys((each["operation"], each["reason"]) for each in row["merged"])
        for operation, reason in reasons:
            merged += f"- {name}, `{operation}`: {reason}\n"
        for reason, count in row["left_out"].items():
            aside += f"- {name}, {count}: {reason}\n"
    return (
        f"{HEAD}{rows}\nMerged, and why:\n\n{merged or '- nothing'}\n\n"
        f'Left out by `"all-linear"`, and why:\n\n{aside}'
    )


def written(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
