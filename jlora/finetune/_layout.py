"""Over which devices a run goes: the mesh that was asked for, or the one that suits the batch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jlora import models, trainer
from jlora.finetune._settings import Settings
from jlora.models._mesh import DATA, FSDP, MODEL

# Weights that take less of a device than this are whole there without asking its compiler.
_SMALL = 0.25


def layout(settings: Settings) -> models.Layout | None:
    """How the run lies on its devices; None on one alone. A line says which of them are used.

    Without ``settings.mesh``: rows are cut over as many devices as divide them, and weights too
    where a step does not fit one device whole, by the compiler's own count.

    Args:
        settings: of the run.

    Raises:
        ValueError: when the devices do not make the mesh, or it does not divide the batch; when
            devices of several processes would be left over.
    """
    rows, total = settings.batch_size // settings.accumulate, len(jax.devices())
    if settings.mesh is not None:
        found = models.Layout(models.make_mesh(settings.mesh))
        if rows % found.parts:
            raise ValueError(_undivided(settings, rows, found.mesh.shape))
    elif total == 1:
        return None
    else:
        found = _chosen(settings, rows, total)
    _tell(found, total)
    return found


def _chosen(settings: Settings, rows: int, total: int) -> models.Layout | None:
    """Rows over as many devices as divide them; weights too, where they do not fit otherwise."""
    count = max(each for each in range(1, total + 1) if rows % each == 0)
    if jax.process_count() > 1 and count < total:  # none may be left over
        raise ValueError(_undivided(settings, rows, {DATA: total}))
    if count == 1:
        return None
    whole = models.Layout(models.make_mesh({"data": count}))
    return whole if _fits(settings, whole) else models.Layout(models.make_mesh({"fsdp": count}))


def _undivided(settings: Settings, rows: int, sizes: Mapping[str, int]) -> str:
    """What is wrong with the rows of a pass on a mesh, and what would be right."""
    passes, total = settings.accumulate, math.prod(sizes.values())
    of_rows = {name: size for name, size in sizes.items() if name in (DATA, FSDP)}
    unit = passes * math.prod(of_rows.values())
    lower = settings.batch_size // unit * unit
    batches = " or ".join(str(size) for size in (lower, lower + unit) if size)
    cut = math.gcd(rows, total)
    name = FSDP if FSDP in sizes else DATA
    mesh = {name: cut, MODEL: total // cut} if cut < total else {name: cut}
    of = "" if passes == 1 else f" (--batch-size over --accumulate {passes})"
    return (
        f"{rows} rows{of} can't be cut over {_shown(of_rows)}: expected --batch-size {batches}, or "
        f"--mesh {_shown(mesh)}"
    )


def _shown(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def _tell(found: models.Layout | None, count: int) -> None:
    used = 1 if found is None else found.mesh.size
    sizes = {} if found is None else found.mesh.shape
    axes = _shown(sizes) or "one device"
    idle = f", {count - used} idle" if used < count else ""
    print(f"mesh      {axes}: {used} of {count} devices{idle}")


def _fits(settings: Settings, on: models.Layout) -> bool:
    """Whether a step fits one of the devices, with its weights whole there."""
    limit = trainer.memory_limit()
    if limit is None:
        return True
    if jax.devices()[0].platform == "cpu":  # which share the machine's
        limit //= jax.local_device_count()
    outlined = models.outline(settings.model)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(outlined.params))
    if numbers * jnp.dtype(settings.dtype).itemsize < _SMALL * limit:
        return True
    from jlora.finetune._dry_run import prospect

    with tempfile.TemporaryDirectory() as folder:
        its = prospect(settings, Path(folder), on=on).training()
    return its.peak <= limit


def spread(batches: Any, on: models.Layout | None, *, fill: bool = False) -> Any:
    """``n -> batch`` on the run's devices; as it is on one alone."""
    return batches if on is None else trainer.sharded(batches, on.rows, fill=fill)
