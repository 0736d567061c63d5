"""A head that is its model's embedding: PEFT saves both, and both must be one."""

from __future__ import annotations

import numpy as np

from jlora.peft import _matching, _names, _rows, _whole_leaves
from jlora.peft._file import AdapterFile


def check(file: AdapterFile) -> None:
    """A tied model's head has what its embedding has, or the adapter is of an untied model."""
    for name in _same(file):
        file.take(name)
    if (name := differing(file)) is not None:
        file.problems.append(
            f"{name} is not that of {_same(file)[name][0]}: the model's head is its embedding, and "
            "the adapter changes one of them alone. models.with_vocabulary(model, "
            "peft.vocabulary(directory, model)) has them apart"
        )


def differing(file: AdapterFile) -> str | None:
    """The head's tensor that is not the embedding's, or is the head's or embedding's alone."""
    for name, (source, turned) in _same(file).items():
        mine, other = file.tensors.get(name), file.tensors.get(source)
        if mine is None and other is None:
            continue
        follows = (
            name.endswith(_rows.SUFFIX)
            or (turned and file.settings["ensure_weight_tying"])
            or not (turned or _matching.is_saved(file.settings, file.layout.tied or ""))
        )
        if mine is None and follows:  # PEFT changes both at once
            continue
        other = other.T if turned and other is not None else other
        if mine is None or other is None or not np.array_equal(mine, other):
            return name
    return None


def _same(file: AdapterFile) -> dict[str, tuple[str, bool]]:
    """The head's tensors, what each is of the embedding's, and whether it is turned."""
    tied, head = file.layout.tied, _names.HEAD
    if tied is None:
        return {}
    return {
        f"{head}.lora_A.weight": (f"{tied}.lora_embedding_B", True),
        f"{head}.lora_B.weight": (f"{tied}.lora_embedding_A", True),
        f"{head}.weight": (f"{tied}.weight", False),
        f"{head}{_whole_leaves.BASE_COPY}": (f"{tied}{_whole_leaves.BASE_COPY}", False),
        f"{head}{_rows.SUFFIX}": (f"{tied}{_rows.SUFFIX}", False),
    }
