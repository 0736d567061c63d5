"""JAX's own catalogue of uses of its primitives, whole or a share of it.

The catalogue is what JAX tests its exports with: some 5,600 functions ("harnesses"), each with a
name and a maker of arguments. It is private to JAX, and read in this file alone.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np


def chosen(share: float) -> list[Any]:
    """The harnesses whose names fall into the share: the same ones in each run and order."""
    # here, because it starts XLA, which reads its flags once
    from jax._src.internal_test_util import test_harnesses

    return [h for h in test_harnesses.all_harnesses if number(h.fullname) % 1000 < 1000 * share]


def number(*names: Any) -> int:
    """A number that is always the same for these names, and looks random."""
    return zlib.crc32("/".join(map(str, names)).encode())


def arguments(harness: Any) -> list[Any]:
    """Its arrays, the same in each run."""
    return harness.dyn_args_maker(np.random.RandomState(number(harness.fullname)))


def refused(harness: Any) -> str | None:
    """Why JAX says that this use does not run on a CPU, or None."""
    if harness.filter("cpu"):
        return None
    limits = [limit for limit in harness.jax_unimplemented if "cpu" in limit.devices]
    return f"listed as such: {limits[0].description}"
