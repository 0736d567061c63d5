"""The states in a run's folder: each is whole or not there, and told from those of other runs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jlora import _files, _paths, _sealed_json, _together
from jlora.checkpoint import _arrays
from jlora.trainer import _sealed_states

_FORMER = ".checkpoints-of-the-run-before"
_ARRAYS = "default"  # the folder in a state


class States:
    """A folder with a folder for each state, named by its step and sealed.

    Args:
        folder: of the states; it need not be there.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._former = folder.with_name(_FORMER)

    def there(self) -> list[int]:
        """The steps of all states in the folder, also damaged ones and another run's."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return [int(name) for name in names if name.isdecimal() and name == str(int(name))]

    def of(self, run: Callable[[], str | None]) -> dict[int, bool]:
        """The steps of a run's states, damaged ones too, and whether each was the best.

        Args:
            run: gives the run's id; it is asked where there are states.
        """
        if not (there := self.there()):
            return {}
        its, ours = run(), {}
        for step in there:
            try:
                seal = _sealed_states.read(self._at(step))
            except ValueError:
                ours[step] = False
            else:
                if seal.run == its:
                    ours[step] = seal.best
        return ours

    def write(
        self, step: int, state: Any, *, run: str | None, notes: Mapping[str, Any], best: bool
    ) -> None:
        """Writes a state aside, seals it, and gives it its name once it is on the disk.

        Raises:
            OSError: when it can't be written; what was there stays.
            ValueError: of several processes, when an array does not lie on the devices of all.
        """
        arrays, _ = _paths.arrays(state)
        where = self._folder.absolute() / str(step)
        _arrays.require_of_all(where, arrays)
        aside = where.with_name(f".{where.name}")

        def make_room() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

        def name_it() -> None:
            _sealed_states.seal(aside, step=step, run=run, notes=notes, best=best)
            _files.sync(aside)
            if where.exists():  # another run's, which is not ours to delete
                os.rename(where, where.with_name(f"{where.name}-of-another-run"))
            os.rename(aside, where)
            _files.sync_folder(where.parent)

        try:
            _together.by_first(f"saving {where}", make_room)
            _arrays.write(aside / _ARRAYS, arrays)
            _together.by_first(f"sealing {where}", name_it)
        except OSError as error:
            _files.remove_folder(aside)
            reason = error.strerror or str(error).rpartition("could not be written: ")[2]
            raise OSError(f"{where} could not be written: {reason}") from error

    def note(self, step: int, *, run: str | None, notes: Mapping[str, Any], best: bool) -> None:
        """Adds notes to those of a state; a damaged one, or one without a seal, stays so."""
        with contextlib.suppress(ValueError):
            seal = _sealed_states.checked(self._at(step), step, run)
            together = {"notes": {**seal.notes, **notes}, "best": best or seal.best}
            _sealed_states.seal(self._at(step), step=step, run=run, **together)

    def first_good(
        self, steps: list[int], run: str | None, *, sealed: bool
    ) -> tuple[int, dict[str, Any], dict[int, str]]:
        """The first state that is as it was written, its notes, and what is wrong with others.

        Args:
            steps: in the order in which they are tried.
            run: whose they are.
            sealed: whether each has a seal; version 0.1 wrote none.

        Raises:
            ValueError: when none is.
        """
        damaged = {}
        for step in steps:
            if not sealed and not (self._at(step) / "seal.json").exists():
                return step, {}, damaged
            try:
                return step, _sealed_states.checked(self._at(step), step, run).notes, damaged
            except _sealed_json.NewerVersionError:
                raise
            except ValueError as error:
                damaged[step] = str(error)
        raise ValueError(
            f"every checkpoint in {self._folder.parent} is damaged: "
            + "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            + ". Begin the run again"
        )

    def read(self, step: int, like: Any) -> Any:
        """The state, in the structure of ``like``, whose shardings the arrays get.

        Raises:
            ValueError: when it was another model's or another adapter's.
        """
        leaves, structure = _paths.arrays(like)
        expected = {
            path: _arrays.abstract(leaf.shape, leaf.dtype, getattr(leaf, "sharding", None))
            for path, leaf in leaves.items()
        }
        arrays = _arrays.read(self._at(step) / _ARRAYS, expected)
        return jax.tree.unflatten(structure, [arrays[path] for path in leaves])

    def remove(self, step: int) -> None:
        """Takes the state away at once: what is deleted by halves is no state any more."""
        where = self._at(step)
        aside = where.with_name(f".{step}")
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rename(where, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def remove_unfinished(self) -> None:
        """What a process that was killed left, half written or half deleted."""
        for path in (self._former, *self._folder.glob(".*")):
            shutil.rmtree(path, ignore_errors=True)

    def set_aside(self) -> None:
        """Takes all states away at once; `remove_former` deletes them, when a new run has begun."""
        self.remove_former()
        if self._folder.exists():
            os.rename(self._folder, self._former)

    def remove_former(self) -> None:
        """Deletes what `set_aside` took away."""
        shutil.rmtree(self._former, ignore_errors=True)

    def _at(self, step: int) -> Path:
        return self._folder / str(step)
