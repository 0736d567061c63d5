"""Several loggers as one: each gets every number, and none can end a training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jlora import _requires, _words
from jlora.trainer._loggers import _logger, _tensorboard, _trackio, _wandb
from jlora.trainer._loggers._metrics import Metrics

_SERVICES = {
    "tensorboard": (_tensorboard.PACKAGE, _tensorboard.TensorBoard),
    "wandb": (_wandb.PACKAGE, _wandb.Wandb),
    "trackio": (_trackio.PACKAGE, _trackio.Trackio),
}
LOGGERS = tuple(_SERVICES)


class Loggers:
    """A logger made of others. One that fails says so once, and the others go on.

    Args:
        loggers: by name, for messages.
        say: takes the line about one that fails.

    Example:
        >>> import jlora
        >>> class Failing:
        ...     def write(self, step, values):
        ...         raise OSError("no space left")
        ...     def close(self):
        ...         pass
        >>> both = jlora.trainer.Loggers({"mine": Failing()}, say=print)
        >>> both.write(7, {"loss": 0.5})
        logger mine failed at step 7, training goes on: OSError: no space left
        >>> both.write(8, {"loss": 0.5})
    """

    def __init__(self, loggers: Mapping[str, _logger.Logger], *, say: Callable[[str], Any]):
        self._loggers = loggers
        self._say = say
        self._failed: set[str] = set()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Gives each logger the numbers of the step; reading them waits for the device."""
        for name, logger in self._loggers.items():
            with self.told(name, f"at step {step}"):
                logger.write(step, _logger.numbers(values))

    def close(self) -> None:
        """Closes each logger, whatever the others do."""
        for name, logger in self._loggers.items():
            with self.told(name, "on closing"):
                logger.close()

    @contextlib.contextmanager
    def told(self, name: str, when: str) -> Iterator[None]:
        """Where the logger fails it says so, the first time, and nothing more happens."""
        try:
            yield
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                what = _words.one_line(f"{type(error).__name__}: {error}")
                self._say(f"logger {name} failed {when}, training goes on: {what}")


def check_loggers(names: Sequence[str | _logger.Logger]) -> None:
    """Raises, before any work, what `loggers` would raise later.

    Args:
        names: as for `loggers`.

    Raises:
        ValueError: when a name is none of `LOGGERS` or is given twice, or when its package is not
            installed.

    Example:
        >>> import jlora
        >>> jlora.trainer.check_loggers(["tensorbord"])
        Traceback (most recent call last):
            ...
        ValueError: logger 'tensorbord': expected some of tensorboard, wandb, trackio
    """
    asked = [name for name in names if isinstance(name, str)]
    unknown = [repr(name) for name in asked if name not in _SERVICES]
    if unknown:
        raise ValueError(f"logger {', '.join(unknown)}: expected some of {', '.join(LOGGERS)}")
    if twice := sorted({name for name in asked if asked.count(name) > 1}):
        raise ValueError(f"logger {', '.join(twice)} is given twice: expected each once")
    missing = []
    for name in asked:
        package, _ = _SERVICES[name]
        try:
            _requires.requires(package, f'"jlora[{name}]"')
        except ValueError as error:
            missing.append(f"logger {name}: {error}")
    if missing:
        raise ValueError("; ".join(missing))


@contextlib.contextmanager
def loggers(
    names: Sequence[str | _logger.Logger],
    folder: str | Path,
    *,
    resume_at: int = 0,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    say: Callable[[str], Any] | None = None,
) -> Iterator[Loggers]:
    """`Metrics` in ``folder/metrics.jsonl``, and these beside it; all are closed at the end.

    A logger that fails never ends a training: the first time a line says so. On many hosts the
    first process alone logs.

    Args:
        names: some of `LOGGERS`: ``"tensorboard"`` writes to ``folder/tensorboard``, ``"wandb"``
            to ``folder/wandb`` and, unless it is offline, to its service, ``"trackio"`` to
            Trackio's own folder. Loggers of your own may stand between the names.
        folder: of the run; it is made if need be.
        resume_at: steps already taken: what was logged of later ones is replaced by what is
            logged now. 0 begins afresh.
        settings: what the run was begun with, shown beside its numbers.
        name: of the run, in the services; the folder's name if it is not given.
        say: takes the lines about loggers that fail; if it is not given they go to standard error.

    Raises:
        ValueError: when a name is none of `LOGGERS`, or its package is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import jlora
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with jlora.trainer.loggers((), folder) as log:
        ...         log.write(1, {"loss": 0.5})
        ...     print((pathlib.Path(folder) / "metrics.jsonl").read_text(), end="")
        {"step": 1, "loss": 0.5, "version": 2}
    """
    check_loggers(names)
    opened: dict[str, _logger.Logger] = {}
    together = Loggers(opened, say=say or (lambda line: print(line, file=sys.stderr)))
    if jax.process_index():
        yield together
        return
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    opened["metrics.jsonl"] = Metrics(folder / "metrics.jsonl", resume_at=resume_at)
    try:
        for each in names:
            if not isinstance(each, str):
                opened[_words.unlike(type(each).__name__, opened)] = each
                continue
            _, service = _SERVICES[each]
            with together.told(each, "on opening"):
                opened[each] = service(
                    folder,
                    resume_at=resume_at,
                    settings=settings or {},
                    name=name or folder.name,
                )
        yield together
    finally:
        together.close()
