"""How several processes, on one host or on many, become one run."""

from __future__ import annotations

import re
import socket
import time

import jax

from jlora import _together

HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as dead


def start_processes(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: float = 120.0,
) -> None:
    """Joins this process with the others of the run; each of them calls it, before JAX starts.

    Afterwards `jax.devices` has those of all processes. One that dies ends the others within a
    minute.

    Args:
        coordinator: ``HOST:PORT``, where process 0 listens. What the three arguments say is asked
            of the cluster (SLURM, TPU, GKE, MPI) where none of them is given.
        processes: how many there are.
        process_id: the number of this one, from 0.
        seconds: that all have to come.

    Raises:
        ValueError: when JAX has started already, when arguments are missing or out of range, or
            when no cluster is found.
        TimeoutError: when the coordinator does not answer.
        OSError: in process 0, when it can't listen there.

    Example:
        >>> import jlora
        >>> jlora.trainer.start_processes("localhost:8476", processes=2, process_id=2)
        Traceback (most recent call last):
            ...
        ValueError: process_id is 2: expected a number from 0 to 1, of 2 processes
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    alone = all(value is None for value in given.values())
    if not alone:
        _check(given)
    if _together.client() is not None:
        raise ValueError("the processes were started before: expected one call in each process")
    if not alone:
        _require_answer(str(coordinator), process_id or 0, seconds)
    if not getattr(jax.config, "jax_cpu_collectives_implementation", None):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler takes SIGTERM for itself; `stop_on_signals` tells all processes of one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=int(seconds),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
            cluster_detection_method=None if alone else "deactivate",
        )
    except ValueError:
        raise ValueError(
            "no cluster is found in the environment (SLURM, TPU, GKE, MPI): expected coordinator, "
            "processes and process_id"
        ) from None
    except RuntimeError as error:
        if "before" not in str(error):
            raise
        raise ValueError(
            "JAX has started already: expected start_processes before anything is computed, and "
            "before devices are asked for"
        ) from None


def _check(given: dict[str, object]) -> None:
    """Raises a ValueError that names all that is wrong with the arguments."""
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(
            f"{' and '.join(missing)} not given: expected coordinator, processes and process_id "
            "together, or none of them where the cluster says them"
        )
    coordinator, processes, process_id = given.values()
    problems = []
    if not re.fullmatch(r".+:[0-9]{1,5}", str(coordinator)):
        problems.append(f"coordinator is {coordinator!r}: expected HOST:PORT")
    if not (isinstance(processes, int) and processes >= 1):
        problems.append(f"processes is {processes}: expected at least 1")
    elif not (isinstance(process_id, int) and 0 <= process_id < processes):
        problems.append(
            f"process_id is {process_id}: expected a number from 0 to {processes - 1}, of "
            f"{processes} processes"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _require_answer(coordinator: str, process_id: int, seconds: float) -> None:
    """Raises an OSError where JAX's runtime would end the process in the middle of itself."""
    host, _, port = coordinator.rpartition(":")
    if process_id == 0:
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("", int(port)))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise OSError(f"process 0 can't listen at {coordinator}: {reason}") from None
        return
    until, reason = time.monotonic() + seconds, "it does not answer"
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error) or reason
        if time.monotonic() > until:
            raise TimeoutError(
                f"the coordinator {coordinator} did not answer for {seconds:g} seconds ({reason}): "
                "expected process 0 to run there"
            )
        time.sleep(0.2)
