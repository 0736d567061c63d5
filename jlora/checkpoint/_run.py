"""A training run on disk: what it was started with, and the last few states to go on from."""

from __future__ import annotations

import contextlib
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jlora import _files, _paths
from jlora.checkpoint import _arrays, _lock, _sealed_states

_FILE = "run.json"
_STATES = "checkpoints"
_FORMAT = "format"  # the key of the version in the file
_VERSION = 2  # 1 had no key, and states without seals
_ID = "id"  # the key of what tells one run's states from another's


class Run:
    """The folder of one training run: its settings as JSON, its states through Orbax.

    A state is any pytree of arrays: adapter, optimizer state, random keys as `jax.random.key_data`.
    Each is written aside and renamed, so that one which is there is complete, and sealed with the
    sums of its files, so that a damaged one is never read. Static data is not stored: `restore`
    takes it, and the structure, from the state that it is given.

    Args:
        directory: the run's folder; nothing is written before `begin`.
        keep: how many states to keep; older ones are deleted.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> state = {"a": jnp.ones((7, 2)), "updates": jnp.int32(100)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = jlora.checkpoint.Run(folder)
        ...     run.begin({"rank": 2})
        ...     run.save(100, state)
        ...     step, state = run.restore(state)
        ...     run.close()
        >>> step, int(state["updates"])
        (100, 100)
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = Path(directory)
        self._keep = keep
        self._open: ocp.CheckpointManager | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process until the block ends; needs the package filelock.

        The lock is free once its process has ended, however it ended. If no run was begun in the
        block, what it wrote into a folder that was new or empty is removed again.

        Raises:
            ValueError: when another process holds it, which is named.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{self.directory} is a file: expected a folder for the run")
        new = not self.directory.exists()
        was_empty = new or not any(self.directory.iterdir())
        try:
            with _lock.locked(self.directory):
                try:
                    yield
                finally:
                    if not self.begun:
                        _lock.leave(self.directory, everything=was_empty)
        finally:
            if new and not self.begun:
                with contextlib.suppress(OSError):  # another process has begun to use it
                    self.directory.rmdir()

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return (self.directory / _FILE).exists()

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
        if any(not path.name.startswith(".") for path in where.iterdir()):
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
        begun = self._begun_with()
        return {name: value for name, value in begun.items() if name not in (_FORMAT, _ID)}

    def _begun_with(self) -> dict[str, Any]:
        if not self.begun:
            raise ValueError(
                f"{self.directory} holds no run to go on with: {_FILE} is missing. Expected the "
                "folder of a run that was begun"
            )
        begun = _files.read_json(self.directory / _FILE)
        if not isinstance(begun, dict) or not isinstance(begun.get(_FORMAT, 1), int):
            raise ValueError(f"{self.directory / _FILE} is damaged: expected a run's settings")
        if (version := begun.get(_FORMAT, 1)) > _VERSION:
            raise ValueError(
                f"{self.directory} is a run of format version {version}: this jlora reads versions "
                f"up to {_VERSION}"
            )
        return begun

    @property
    def latest_step(self) -> int | None:
        """The step of the last state, None if there is none."""
        return self._manager.latest_step() if (self.directory / _STATES).exists() else None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Starts the run afresh: a former run's states in the folder are deleted.

        Raises:
            ValueError: when the folder can't be made.
        """
        self.close()
        shutil.rmtree(self.directory / _STATES, ignore_errors=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.directory} can't be made: {error.strerror}") from None
        identity = {_FORMAT: _VERSION, _ID: uuid.uuid4().hex}
        _files.write_json(self.directory / _FILE, {**identity, **settings})

    def record(self, name: str, content: Any) -> None:
        """Keeps something small beside the states, as ``<name>.json``, replaced in one step.

        Raises:
            OSError: when it can't be written; what was there stays.
        """
        _files.write_json(self.directory / f"{name}.json", content)

    def recorded(self, name: str) -> Any:
        """What `record` was last given under this name, or None.

        Raises:
            ValueError: when the file is damaged.
        """
        path = self.directory / f"{name}.json"
        return _files.read_json(path) if path.exists() else None

    def save(self, step: int, state: Any) -> None:
        """Writes the state, unless that of this step or of a later one is already there.

        Raises:
            OSError: when it can't be written, as on a full disk; earlier states stay.
            ValueError: when the folder holds no run.
        """
        run = self._begun_with().get(_ID)
        arrays, _ = _paths.arrays(state)
        latest = self.latest_step
        if latest is None or step > latest:
            where = self.directory.absolute() / _STATES / str(step)
            _arrays.require_room(where, arrays)
            with _arrays.quiet(), _arrays.unwritten(where):
                self._manager.save(step, args=_arrays.save_args(arrays))
                _sealed_states.seal(where, run)

    def restore(
        self, state: Any, *, say: Callable[[str], object] = warnings.warn
    ) -> tuple[int, Any]:
        """The pair (step, state) of the newest good save, in the structure of ``state``.

        A state whose files are not as they were written is passed over, and deleted once an older
        one was read in its place.

        Args:
            state: a tree of the same structure, whose shardings the arrays get.
            say: is given a line for each state that is passed over.

        Raises:
            ValueError: when there is none, when all are damaged, or when it was another model's or
                another adapter's: every array that differs is named.
        """
        if self.latest_step is None:
            raise ValueError(f"{self.directory} holds no checkpoint to go on from")
        step, damaged = self._newest_good()
        restored = self._restored(step, state)
        for other, problem in damaged.items():
            say(
                f"the checkpoint of step {other} in {self.directory} is damaged ({problem}): going "
                f"on from the one of step {step}"
            )
            self._manager.delete(other)
        return restored

    def _newest_good(self) -> tuple[int, dict[int, str]]:
        """The newest state that is as it was written, and what is wrong with those after it."""
        begun = self._begun_with()
        sealed = begun.get(_FORMAT, 1) > 1
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            where = self.directory / _STATES / str(step)
            problem = _sealed_states.problem(where, begun.get(_ID)) if sealed else None
            if problem is None:
                return step, damaged
            damaged[step] = problem
        raise ValueError(
            f"every checkpoint in {self.directory} is damaged: "
            + "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            + ". Begin the run again"
        )

    def _restored(self, step: int, state: Any) -> tuple[int, Any]:
        leaves, structure = _paths.arrays(state)
        expected = {
            path: _arrays.abstract(leaf.shape, leaf.dtype, getattr(leaf, "sharding", None))
            for path, leaf in leaves.items()
        }
        where = self.directory / _STATES / str(step)
        with _arrays.quiet():
            with _arrays.explained(where):
                found = self._manager.item_metadata(step).tree
            _arrays.check(where, expected, found)
            with _arrays.explained(where):
                arrays = self._manager.restore(step, args=_arrays.restore_args(expected))
        return step, jax.tree.unflatten(structure, [arrays[path] for path in leaves])

    def close(self) -> None:
        """Lets go of the folder; the next use opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            with _arrays.quiet():
                self._open = ocp.CheckpointManager(
                    (self.directory / _STATES).absolute(),
                    # A state is a few megabytes: written at once, it is on disk when save returns.
                    options=ocp.CheckpointManagerOptions(
                        max_to_keep=self._keep, enable_async_checkpointing=False
                    ),
                    item_handlers=ocp.PyTreeCheckpointHandler(),
                )
        return self._open
