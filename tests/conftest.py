"""All rooms can be named together: what one process can't run is left out, and the end says so."""

import importlib.util
import os
import sys
from pathlib import Path

ROOMS = Path(__file__).parent


def left_out(config) -> dict[Path, str]:
    """The rooms that this run can't collect, and what to do."""
    asked = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    reasons = {}
    mesh = ROOMS / "mesh"
    if not all(path.is_relative_to(mesh) for path in asked):
        reasons[mesh] = "it needs eight devices before JAX starts: `pytest tests/mesh` by itself"
    hosts = ROOMS / "hosts"
    if not all(path.is_relative_to(hosts) for path in asked):
        reasons[hosts] = "it starts processes of its own: `pytest tests/hosts` by itself"
    if importlib.util.find_spec("torch") is None:
        reasons[ROOMS / "oracle"] = 'it needs torch: see "oracle" in .ci/run'
    if "NODE_LLAMA_CPP" not in os.environ:
        reasons[ROOMS / "llama_cpp"] = 'it needs node-llama-cpp: see "llama_cpp" in .ci/run'
    return {
        room: reason
        for room, reason in reasons.items()
        if any(room.is_relative_to(path) or path.is_relative_to(room) for path in asked)
    }


def pytest_ignore_collect(collection_path, config):
    """True for a room that is left out."""
    return True if collection_path in left_out(config) else None


def pytest_terminal_summary(terminalreporter, config):
    """Each room that is left out, and why."""
    for room, reason in left_out(config).items():
        terminalreporter.write_line(f"LEFT OUT {room.relative_to(ROOMS.parent)}: {reason}")


def pytest_runtest_teardown(item, nextitem):
    """A file's compiled programs go with it: of all files together they take gigabytes."""
    if "jax" in sys.modules and (nextitem is None or nextitem.path != item.path):
        sys.modules["jax"].clear_caches()
