"""A training run on disk: what it was started with, and the states to go on from."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jlora import _together
from jlora.trainer import _lock, _shared
from jlora.trainer._records import Records
from jlora.trainer._states import States

_STATES = "checkpoints"


class Run:
    """The folder of one training run: its settings, its states and its records.

    A state is any pytree of arrays: adapter, optimizer state, random keys as `jax.random.key_data`.
    Each is written aside, sealed with the sums of its files and renamed once it is on the disk, so
    that one which is there is complete, and a damaged one is never read. Static data is not stored:
    `restore` takes it, and the structure, from the state that it is given.

    Args:
        directory: the run's folder; nothing is written before `begin`.
        keep: how many states to keep, the newest; the best one stays beside them.

    Raises:
        ValueError: when ``keep`` is less than 1, or the directory is an address such as gs://.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> state = {"a": jnp.ones((7, 2)), "updates": jnp.int32(100)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = jlora.trainer.Run(folder)
        ...     run.begin({"rank": 2})
        ...     run.save(100, state, notes={"loss": 0.5}, best=True)
        ...     step, state, notes = run.restore(state)
        ...     best = run.best_step
        >>> step, int(state["updates"]), notes, best
        (100, 100, {'loss': 0.5}, 100)
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep is {keep}: expected at least 1 state")
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(directory)):
            raise ValueError(
                f"{directory} is no folder of a file system: expected one, which all processes see"
            )
        self.directory = Path(directory)
        self._keep = keep
        self._records = Records(self.directory)
        self._states = States(self.directory / _STATES)
        self._fresh = False  # whether it holds only what a start that was killed left

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this run until the block ends; needs the package filelock.

        Of several processes the first holds it, once all of them have seen it.

        The lock is free once its process has ended, however it ended. If no run was begun in the
        block, what it wrote into a folder that was new or empty is removed again; what a process
        that was killed left there is in nobody's way.

        Raises:
            ValueError: when another process holds it, which is named.
        """
        with contextlib.ExitStack() as held:
            enter = lambda: held.enter_context(self._held())  # noqa: E731
            self._fresh = _together.by_first(f"locking {self.directory}", enter)
            _shared.require(self.directory)
            yield

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """The lock, in the process that takes it."""
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{self.directory} is a file: expected a folder for the run")
        new = not self.directory.exists()
        was_empty = new or not any(self.directory.iterdir())
        try:
            with _lock.locked(self.directory) as fresh:
                self._states.remove_unfinished()
                try:
                    yield fresh
                finally:
                    if not self.begun:
                        _lock.leave(self.directory, everything=was_empty)
        finally:
            self._fresh = False
            if new and not self.begun:
                with contextlib.suppress(OSError):  # another process has begun to use it
                    self.directory.rmdir()

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return self._records.begun

    def claim(self, *, overwrite: bool = False) -> None:
        """Nothing, if a new run may begin in the folder; nothing is written yet.

        Raises:
            ValueError: when it holds another run or other files, unless ``overwrite``; when it is
                no folder.
        """
        where = self.directory
        if where.exists() and not where.is_dir():
            raise ValueError(f"{where} is a file: expected a folder for the run")
        if overwrite or not where.exists():
            return
        if self.begun:
            raise ValueError(
                f"{where} holds another run: expected another folder, or overwrite=True to "
                "replace it"
            )
        # what an interrupted start leaves, and a lock, begin with a dot
        if not self._fresh and any(not path.name.startswith(".") for path in where.iterdir()):
            raise ValueError(
                f"{where} is not empty and holds no run: expected another folder, or "
                "overwrite=True to write beside what is there"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was begun with.

        Raises:
            ValueError: when the folder holds no run, a damaged one, or a newer version's.
        """
        return self._records.settings

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Starts the run afresh: a former run's states and records in the folder are deleted.

        Args:
            settings: anything JSON can hold, by name.

        Raises:
            ValueError: when the folder can't be made, or JSON can't hold the settings.
            OSError: when it can't be written.
        """
        self._records.check(settings)

        def begin() -> None:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{self.directory} can't be made: {error.strerror}") from None
            self._states.set_aside()
            self._records.begin(settings)
            self._states.remove_former()
            _lock.begun(self.directory)
            self._records.remove_others()

        _together.by_first(f"beginning the run in {self.directory}", begin)

    def record(self, name: str, content: Mapping[str, Any]) -> None:
        """Keeps something small beside the states, as ``<name>.json``, replaced in one step.

        Args:
            name: of the file.
            content: anything JSON can hold, by name; a number that is not finite becomes null.

        Raises:
            ValueError: when JSON can't hold the content.
            OSError: when it can't be written; what was there stays.
        """
        keep = lambda: self._records.write(name, content)  # noqa: E731
        _together.by_first(f"recording {name} in {self.directory}", keep)

    def recorded(self, name: str) -> dict[str, Any] | None:
        """What `record` was last given under this name in this run, or None.

        Raises:
            ValueError: when the file is damaged.
        """
        return self._records.read(name)

    @property
    def latest_step(self) -> int | None:
        """The step of the last state, None if there is none."""
        return max(self._ours(), default=None)

    @property
    def steps(self) -> list[int]:
        """The steps of all states, oldest first."""
        return sorted(self._ours())

    @property
    def best_step(self) -> int | None:
        """The step of the last state that was saved as the best, None if there is none."""
        return max((step for step, best in self._ours().items() if best), default=None)

    def save(
        self, step: int, state: Any, *, notes: Mapping[str, Any] | None = None, best: bool = False
    ) -> None:
        """Writes the state, unless that of this step or of a later one is already there.

        Where this step's is there, the notes are added to its own. Older states are deleted once
        the new one is on the disk, but never the best.

        Args:
            step: how many updates were done.
            state: a tree of arrays.
            notes: something small that JSON can hold, by name, for `restore` to give back.
            best: whether it is the best so far, to be kept until a later one is.

        Raises:
            OSError: when it can't be written, as on a full disk; earlier states stay.
            ValueError: when the folder holds no run, or JSON can't hold the notes; of several
                processes, when an array does not lie on the devices of all.
        """
        run = self._records.run
        try:
            json.dumps(notes, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the notes can't be written as JSON: {error}") from None
        of_seal = {"run": run, "notes": notes or {}, "best": best}
        latest = _together.by_first(f"states in {self.directory}", lambda: self.latest_step)
        if latest is None or step > latest:
            self._states.write(step, state, **of_seal)
        elif step == latest and (notes or best):
            noted = lambda: self._states.note(step, **of_seal)  # noqa: E731
            _together.by_first(f"noting step {step} in {self.directory}", noted)
        _together.by_first(f"saved step {step} in {self.directory}", self._remove_old)

    def _remove_old(self) -> None:
        ours = self.steps
        kept = {*ours[-self._keep :], self.best_step}
        for step in ours:
            if step not in kept:
                self._states.remove(step)
        self._states.remove_unfinished()

    def restore(
        self, like: Any, step: int | None = None, *, say: Callable[[str], object] = print
    ) -> tuple[int, Any, dict[str, Any]]:
        """The step, the state and the notes of the newest good save, or of the one asked for.

        A state whose files are not as they were written is passed over for the newest good one, and
        deleted once that was read in its place.

        Args:
            like: a tree of the same structure, whose shardings the arrays get.
            step: another state than the newest, such as ``best_step``.
            say: is given a line for each state that is passed over.

        Raises:
            ValueError: when there is none, when all are damaged, or when it was another model's or
                another adapter's: every array that differs is named.
        """
        there = sorted(self._states.there(), reverse=True)
        if not there:
            raise ValueError(f"{self.directory} holds no checkpoint to go on from")
        if step is not None and step not in there:
            raise ValueError(
                f"{self.directory} holds no checkpoint of step {step}: there are those of "
                f"{', '.join(map(str, reversed(there)))}"
            )
        wanted = there if step is None else [step, *(each for each in there if each != step)]
        run = self._records.run if self.begun else None
        sealed = self._records.seals_states
        chosen, notes, damaged = self._states.first_good(wanted, run, sealed=sealed)
        state = self._states.read(chosen, like)
        ours = self._ours()
        for other, problem in damaged.items():
            say(
                f"the checkpoint of step {other} in {self.directory} is damaged ({problem}): going "
                f"on from the one of step {chosen}"
            )
            if other in ours:
                self._states.remove(other)
        return chosen, state, notes

    def _ours(self) -> dict[int, bool]:
        """The steps of this run's states, damaged ones too, and whether each was the best."""
        return self._states.of(lambda: self._records.run)
