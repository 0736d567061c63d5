"""The table of models of other packages, out of what the benchmark stored."""

from __future__ import annotations

import json

from docs.made.results import RESULTS

HEAD = """| Package | Model | Value off by | Gradient off by | Weights | `"all-linear"` | Merged |
|---|---|---|---|---|---|---|
"""


def table() -> str:
    """A row for each model, and the reasons for what is merged and left out."""
    found = json.loads((RESULTS / "models-of-others.json").read_text(encoding="utf-8"))
    rows, merged, aside, unclear = "", "", "", ""
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
        for reason, count in row["unclear"].items():
            unclear += f"- {name}, {count}: {reason}\n"
    return (
        f"{HEAD}{rows}\nMerged, and why:\n\n{merged or '- nothing'}\n\n"
        f'Left out by `"all-linear"`, and why:\n\n{aside}\n'
        f"Without an adapter, and why:\n\n{unclear or '- nothing'}\n"
    )
