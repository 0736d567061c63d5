"""Teaches a language model a task with LoRA, and shows before and after what it learned.

    python train.py                              SmolLM2 learns to call Home Assistant
    python train.py --data rows.jsonl            your own questions and answers
    python train.py --out runs/mine --resume     goes on where a run was stopped

Runs on whatever JAX finds: CPU, GPU or TPU. `python -m jlora train` is this script too: copy it and
change it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora import checkpoint, data, finetune, models, tasks, trainer


def train(asked: finetune.Asked, run: trainer.Run) -> None:
    """One run, from its settings to its results."""
    settings, out, phases = asked.settings, run.directory, finetune.Phases("preparing")

    # ---- Data ------------------------------------------------------------------------------------

    folder = finetune.rows_folder(run, resume=asked.resume)
    task = tasks.find(settings.task_name)(settings, out / folder, again=asked.resume)
    rows, held_out = task.rows()

    # ---- Model -----------------------------------------------------------------------------------

    layout = finetune.layout(settings)  # None on one device
    model = task.model(functools.partial(models.load, mesh=layout))
    measured = task.measurable(held_out, model)
    seen = data.Digest()  # of all rows, which are read once
    examples, report = task.examples(seen.through(rows), model, folder=out / folder)
    measured_examples, _ = task.examples(seen.through(measured), model)
    batches = task.batches(examples)
    print(f"train     {report}")
    print(f"held out  {len(measured)} rows of {len(held_out)}")

    # ---- Adapter ---------------------------------------------------------------------------------

    spread = finetune.spread(batches, layout)
    config, frozen, start = finetune.start(
        settings,
        model,
        task.loss(model),
        spread,
        run if asked.resume else None,
        whole=task.trains(model),
    )
    loss = jlora.lift(task.loss(model, start))
    print(f"adapter   {jlora.summary(frozen, start)}")

    # ---- Optimizer and step ----------------------------------------------------------------------

    steps = settings.total_steps(batches.per_epoch)
    tx, learning_rate = finetune.optimizer(settings, steps)
    trains = functools.partial(jlora.mask, freeze=settings.frozen_fields)
    step = trainer.make_step(loss, tx, accumulate=settings.accumulate, trains=trains)
    state = trainer.init(start, tx, jax.random.key(settings.seed))

    # ---- The run's folder ------------------------------------------------------------------------

    identity = {"data": seen.hexdigest(), "base": checkpoint.fingerprint(model.params)}
    trainer.agreed("rows and model", identity)
    settings.check_patience(steps)
    best = finetune.best(settings, task)
    if asked.resume:
        state, best = finetune.resume(run, settings, identity, state, best)
    else:
        finetune.begin(run, settings, identity, folder)
    finetune.keep_start(run, settings, config, frozen, start, model)
    finetune.write_settings(out / "run.toml", settings)

    # ---- Before training -------------------------------------------------------------------------

    held_out_batches = task.batches(measured_examples, shuffle=False)
    spread_held_out = finetune.spread(held_out_batches, layout, fill=True)
    jitted_loss = jax.jit(loss)

    def measure(lora: Any, *, scores: bool = True) -> dict[str, Any]:
        each = map(spread_held_out, range(held_out_batches.per_epoch))
        found = {"loss": trainer.mean_loss(jitted_loss, frozen, lora, each)}
        return finetune.plain(
            found | (task.scores(model, measured, frozen, lora) if scores else {})
        )

    results = (run.recorded("results") if asked.resume else None) or {}
    if "before" not in results:
        phases.begin("measuring")
        print(f"before    measuring {len(measured)} held-out rows ...", flush=True)
        results["before"] = measure(start)
        run.record("results", results)
    finetune.check_measured(best, results["before"])

    # ---- Loop ------------------------------------------------------------------------------------

    phases.begin("training")
    first = number = int(state.step)
    until = number if best.stop else steps  # a run that ended early does not go on by itself
    non_finite = finetune.NonFinite(
        settings,
        run,
        texts=lambda at: task.texts(model, batches, at),
        save=lambda done: finetune.save(run, done, state, best),
    )
    with (
        trainer.stop_on_signals() as stop,
        trainer.loggers(settings.log, out, resume_at=first, settings=settings.flat()) as log,
        trainer.progress(steps, start=first) as bar,
    ):
        losses = trainer.Jumps().over(trainer.read_metrics(out / "metrics.jsonl"))
        watch = trainer.Stopwatch()
        for update in trainer.iterate(step, frozen, state, spread, steps=until):
            state, number = update.state, update.number
            told = jax.device_get(update.metrics)  # waits for the device, once
            values = {
                "loss": float(told["loss"]),
                "grad_norm": float(told["grad_norm"]),
                "learning_rate": float(jnp.asarray(learning_rate(number - 1))),
                **batches.counts(number - 1),
                "seconds": round(watch.lap(), 3),
            }
            if line := non_finite.check(number, values, bool(told["finite"])):
                bar.say(line)
            losses = losses.after(number, values["loss"])
            if losses.warning:
                bar.say(losses.warning)
            if settings.eval_every and (number % settings.eval_every == 0 or update.last):
                with watch.paused():
                    scored = settings.eval_answers or task.quick_scores
                    found = measure(state.lora, scores=scored)
                best = best.after(number, found)
                values |= finetune.evaluated(found)
            log.write(number, values)
            bar.show(number, finetune.shown(values))
            ends = stop.requested or best.stop
            if (
                ends
                or update.last
                or best.step == number
                or number % settings.checkpoint_every == 0
            ):
                with watch.paused():
                    finetune.save(run, number, state, best)
            if ends:
                break
    if stop.signal:
        line = f"stopped by {stop.signal.name} after step {number}, which is saved"
        raise finetune.StoppedError(line, 128 + stop.signal, goes_on=True)
    if best.stop:
        print(f"stopped   after {best.waited} measurements without a better {best.watch}")

    # ---- Results ---------------------------------------------------------------------------------

    phases.begin("measuring")
    adapters = {"adapter": (number, state.lora), "last": (number, state.lora)}
    if settings.eval_every:
        adapters["adapter"] = finetune.best_adapter(run, best, state)
    results["after"] = measure(adapters["adapter"][1])
    run.record("results", results)
    phases.begin("saving and checking")
    trainer.draw(out / "training.png", trainer.read_metrics(out / "metrics.jsonl"), results)
    reloaded = finetune.save_adapters(
        out,
        adapters,
        settings=settings,
        config=config,
        model=model,
        frozen=frozen,
        start=start,
        scores=results,
        about=task.about(measured),
    )
    same = task.same(model, measured, results["after"], *reloaded)
    print(task.shown(measured, results))
    how = "reloaded and merged" if len(reloaded) == 1 else "reloaded"
    print(f"{how}, it gives {same}" if same else "")
    print(f"\nadapter   {out / 'adapter'}\nmetrics   {out / 'metrics.jsonl'}")
    print(
        f"figure    {out / 'training.png'}\n\n{task.command(out / 'adapter', measured)}\n\n{phases}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input, 1 if the run broke off, 128 + the signal it got."""
    return finetune.main(train, argv, description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
