"""What a run will need and what it will train on, before any weight is read."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora import models, tasks, trainer
from jlora._frozen_leaf import is_frozen_leaf
from jlora.finetune._adapter import start
from jlora.finetune._layout import layout
from jlora.finetune._optimizer import optimizer
from jlora.finetune._settings import Settings
from jlora.models._layout import put
from jlora.trainer._sharded import filled_shapes


@dataclasses.dataclass(frozen=True)
class Prospect:
    """A run as far as shapes and rows tell it; see `prospect`."""

    settings: Settings
    task: tasks.Task
    model: Any  # of shapes
    examples: Any
    measured: Any
    batches: Any
    frozen: Any  # of shapes
    lora: Any  # of shapes
    on: models.Layout | None = None

    @property
    def largest(self) -> Any:
        """The batch with the most positions: of these rows in any order there is no larger one."""
        numbers = range(self.batches.per_epoch)
        return self.batches(
            max(numbers, key=lambda at: self.batches.counts(at)["tokens_processed"])
        )

    def training(self, remat: str | None = None, accumulate: int | None = None) -> trainer.Outlook:
        """What a step needs, with these settings in the place of the run's."""
        changed = {"remat": remat, "accumulate": accumulate}
        its = dataclasses.replace(
            self.settings, **{name: value for name, value in changed.items() if value is not None}
        )
        task = copy.copy(self.task)
        task.settings = its
        loss = jlora.lift(task.loss(self.model, self.lora))
        tx, _ = optimizer(its, its.total_steps(self.batches.per_epoch))
        step = trainer.make_step(loss, tx, accumulate=its.accumulate)
        state = trainer.init_shapes(self.lora, tx)
        batch = _batch_on(self.on, self.largest)
        return trainer.outlook(
            step, self.frozen, state, batch, tokens=math.prod(batch["tokens"].shape)
        )

    def measuring(self) -> trainer.Outlook:
        """What the longest measurement of the loss needs."""
        batches = self.task.batches(self.measured, shuffle=False)
        loss = jax.jit(jlora.lift(self.task.loss(self.model, self.lora)))
        return trainer.outlook(loss, self.frozen, self.lora, _batch_on(self.on, batches(0)))


def prospect(settings: Settings, folder: Path, *, on: models.Layout | None = None) -> Prospect:
    """The run of these settings, of shapes alone.

    Args:
        settings: of the run.
        folder: where rows and tokens may be written.
        on: how it lies on a mesh.

    Raises:
        ValueError: as the run itself would.
    """
    task, model, examples, held_out, _ = _read(settings, folder, on)
    measured, _ = task.examples(task.measurable(held_out, model), model)
    batches = task.batches(examples)
    frozen, lora = _started(settings, task, model, batches)
    return Prospect(settings, task, model, examples, measured, batches, frozen, lora, on)


def _read(
    settings: Settings, folder: Path, on: models.Layout | None = None
) -> tuple[tasks.Task, Any, Any, Any, Any]:
    """(task, model of shapes, examples, rows held out, report on the examples)."""
    task = tasks.find(settings.task_name)(settings, folder)
    rows, held_out = task.rows()
    model = task.model(functools.partial(_outline, on))
    examples, report = task.examples(rows, model, folder=folder)
    return task, model, examples, held_out, report


def _started(settings: Settings, task: tasks.Task, model: Any, batches: Any) -> tuple[Any, Any]:
    """(frozen, lora) at the start, of shapes; of a start from data before ranks are moved."""
    if settings.adapter:
        _, frozen, lora = start(settings, model, task.loss(model), batches)
        return frozen, jax.eval_shape(lambda: lora)
    plain = dataclasses.replace(settings, init="kaiming")

    def shapes(params: Any) -> Any:
        its = dataclasses.replace(model, params=params)
        return start(plain, its, task.loss(model), batches, whole=task.trains(model))[1:]

    frozen, lora = jax.eval_shape(shapes, model.params)
    if (on := model.layout) is None:
        return frozen, lora
    places = jax.tree.map(lambda known: known.sharding, model.params)
    frozen = jax.tree.map(put, frozen, places)
    return frozen, jax.tree.map(put, lora, on.of_adapter(frozen, lora))


def _batch_on(on: models.Layout | None, batch: Any) -> Any:
    """The batch's shapes, as they lie on the run's devices."""
    return batch if on is None else filled_shapes(batch, on.rows)


def _outline(
    on: models.Layout | None,
    source: str,
    *,
    dtype: str = "float32",
    quantize: str | None = None,
    attention: str = "blocks",
    **text: Any,
) -> Any:
    """The model as `jlora.models.load` gives it, of shapes."""
    model = models.outline(source, quantize=quantize, mesh=on)
    tokenizer = model.tokenizer
    given = {name: value for name, value in text.items() if value}
    return dataclasses.replace(
        model,
        params=jax.tree.map(functools.partial(_cast, dtype), model.params, is_leaf=is_frozen_leaf),
        attention=attention,
        tokenizer=dataclasses.replace(tokenizer, **given),
    )


def _cast(dtype: str, leaf: Any) -> Any:
    """A leaf of shapes in another dtype; what is kept in a few bits is decoded to it."""
    if is_frozen_leaf(leaf):
        return dataclasses.replace(leaf, dtype=jnp.dtype(dtype))
    return leaf.update(dtype=jnp.dtype(dtype))


def dry_run(settings: Settings) -> None:
    """Prints what the run will need, and a few rows as the model will see them."""
    with tempfile.TemporaryDirectory() as folder:
        run = prospect(settings, Path(folder), on=layout(settings))
        its, measuring = run.training(), run.measuring()
        per_epoch = run.batches.per_epoch
        print(f"adapter    {jlora.summary(run.frozen, run.lora)}")
        print(its)
        print(f"measuring  {measuring.peak / 2**30:.2f} GiB at most")
        print(f"steps      {settings.total_steps(per_epoch)}, {per_epoch} an epoch")
        if fits := advised(run, its):
            print(fits)
        print(f"\n{run.task.preview(run.model, run.examples)}")


def preview(settings: Settings) -> None:
    """Prints a few rows as the model will see them."""
    with tempfile.TemporaryDirectory() as folder:
        task, model, examples, _, report = _read(settings, Path(folder))
        print(f"train     {report}\n\n{task.preview(model, examples)}")


def advice(settings: Settings) -> str:
    """Which settings would fit where these did not."""
    with tempfile.TemporaryDirectory() as folder:
        return advised(prospect(settings, Path(folder), on=layout(settings)))


def advised(run: Prospect, its: trainer.Outlook | None = None) -> str:
    """Which settings would fit this device, where those of the run do not; else nothing."""
    limit = trainer.memory_limit()
    if limit is None or (its is not None and its.peak <= limit):
        return ""
    settings = run.settings
    found = trainer.fitting(
        run.training,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        remats=models.REMATS[models.REMATS.index(settings.remat) :],
        limit=limit,
    )
    if found is None:
        return (
            f"no batch of these rows fits {limit / 2**30:.1f} GiB: a lower --max-length, --dtype "
            "bfloat16, a smaller --rank or another --model may"
        )
    remat, accumulate = found
    return f"what fits {limit / 2**30:.1f} GiB: --remat {remat} --accumulate {accumulate}"
