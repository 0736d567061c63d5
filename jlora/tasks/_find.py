"""Which task a name or a file means."""

from __future__ import annotations

import traceback
from pathlib import Path

from jlora import _file_module, _words
from jlora.tasks._classify import Classify
from jlora.tasks._home_assistant import HomeAssistant
from jlora.tasks._rows import Rows
from jlora.tasks._task import Task

TASKS: dict[str, type[Task]] = {
    "home-assistant": HomeAssistant,
    "rows": Rows,
    "classify": Classify,
}


def find(name: str) -> type[Task]:
    """The class of a task that comes with jlora, or of a file of your own.

    Args:
        name: of one of `TASKS`, or the path of a file with a class ``Task``.

    Raises:
        ValueError: when there is no such task, or the file has no such class or can't be run.

    Example:
        >>> import jlora
        >>> jlora.tasks.find("rows").__name__
        'Rows'
    """
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if path.suffix != ".py":
        raise ValueError(
            f"{name!r} is no task{_words.did_you_mean(name, TASKS)}: expected {', '.join(TASKS)}, "
            "or a .py file with a class Task"
        )
    if not path.is_file():
        raise ValueError(f"{name} is no file: expected one with a class Task")
    return _of_file(path)


def _of_file(path: Path) -> type[Task]:
    try:
        module = _file_module.loaded(path, f"jlora_task_{path.stem}")
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ValueError(f"{path}: {type(error).__name__}: {error} (line {line})") from error
    task = getattr(module, "Task", None)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ValueError(
            f"{path} has no class Task that derives from jlora.tasks.Answers or jlora.tasks.Task"
        )
    return task
