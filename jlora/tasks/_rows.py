"""A person's own questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jlora import data
from jlora.tasks._answers import Answers


class Rows(Answers):
    """The rows of ``data``, some of them held out; or those of ``eval_data`` to measure on."""

    def rows(self) -> tuple[Sequence[data.Messages], Sequence[data.Messages]]:
        """All rows that can be used, from files, folders, standard input or the hub."""
        return own_rows(self, data.open_rows)


def own_rows(task: Any, read: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """(train, held out) of what ``read`` makes of the settings' sources."""
    its = task.settings
    [(source, _)] = its.sources
    options = {"columns": its.columns, "say": print}
    rows = read(source, folder=task.folder, again=task.again, **options)
    if its.eval_data:
        folder = task.folder / "held-out" if task.folder else None
        held_out = read(its.eval_data, folder=folder, again=task.again, **options)
        return rows, held_out
    share = int(its.eval_split * len(rows)) if its.eval_split else len(rows) // 10
    count = max(1, share if its.eval_split else min(its.eval_rows, share))
    return data.hold_out(rows, count, seed=its.seed)
