"""Time, fairly taken: all ways take turns in one process, so that a slow moment slows all."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

Name = TypeVar("Name")


def seconds_in_turns(
    ways: Mapping[Name, Callable[[], Any]], rounds: int
) -> dict[Name, list[float]]:
    """The time of each round, by way, until what it returns is there; a first round is left out."""
    times: dict[Name, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - began)
    return {name: each[1:] for name, each in times.items()}
