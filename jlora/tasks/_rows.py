"""A person's own questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jlora import data
from jlora.tasks._answers import Answers


class Rows(Answers):
    """The rows of ``data``, some of them held out; or those of ``eval_data`` to measure on."""

    unread = ("labels",)

    def rows(self) -> tuple[Sequence[data.Messages], Sequence[data.Messages]]:
        """All rows that can be used, from files, folders, standard input or the hub."""
        return own_rows(self, data.open_rows)


def own_rows(task: Any, read: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """(train, held out) of what ``read`` makes of the settings' sources."""
    its = task.settings
    sources = [
        (read_one(task, read, str(at or ""), source), weight)
        for at, (source, weight) in enumerate(its.sources)
    ]
    rows = sources[0][0] if len(sources) == 1 else data.mixed(sources, seed=its.seed)
    if its.eval_data:
        return rows, read_one(task, read, "held-out", its.eval_data)
    share = int(its.eval_split * len(rows)) if its.eval_split else len(rows) // 10
    count = max(1, share if its.eval_split else min(its.eval_rows, share))
    if not its.eval_split and its.eval_rows != type(its).eval_rows and count < its.eval_rows:
        print(
            f"held out  {count} rows, a tenth of {len(rows)}, where --eval-rows asks for "
            f"{its.eval_rows}: --eval-split and --eval-data give more"
        )
    return data.hold_out(rows, count, seed=its.seed)


def read_one(task: Any, read: Any, name: str, source: str) -> Sequence[Any]:
    """The rows of one source, whose folder is the task's own or one of this name in it."""
    folder = task.folder / name if task.folder else None
    return read(source, folder=folder, again=task.again, columns=task.settings.columns, say=print)
