"""Teaches a language model a task with LoRA, and shows before and after what it learned.

    python train.py                              SmolLM2 learns to call Home Assistant
    python train.py --data rows.jsonl            your own questions and answers
    python train.py --out runs/mine --resume     goes on where a run was stopped

Runs on whatever JAX finds: CPU, GPU or TPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import jlora
from jlora import checkpoint, compiled, data, models, monitor, peft, trainer
from jlora.settings import (
    by_pattern,
    check,
    day,
    names,
    parse,
    setting,
    text_of_file,
    whole_numbers,
)

# ------------------------------------------------------------------------------------------------
# Settings. Each field is a flag; those in FREE may change when a run is resumed.
# ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of. The defaults are tuned for the default task on two CPU cores."""

    model: str = setting(
        "smollm2", "smollm2, a .gguf file, a Hugging Face folder or a Hugging Face hub id"
    )
    data: str = setting(
        "home-assistant",
        "home-assistant, or rows of messages, prompt and completion, instruction and output, text: "
        "a file (JSONL, JSON, CSV, Parquet), a folder, - for standard input, a hub data set",
    )
    columns: dict[str, str] | None = setting(
        None, "other names of the rows' keys, as prompt=question,completion=answer", read=names
    )
    template: str = setting(
        "", "file: a chat template in the place of the model's own", read=text_of_file
    )
    train_reasoning: bool = setting(False, "train the reasoning in answers too")
    date: str = setting(
        "", "what templates take for today (the day on which the run began)", read=day
    )
    out: str = setting("runs/home-assistant", "folder for everything that the run writes")
    steps: int = setting(480, "updates of the adapter", least=1)
    # Many small updates: the same 1920 rows gave 49 % in batches of 16, 74 % of 8, 84 % of 4.
    batch_size: int = setting(4, "rows in an update", least=1)
    accumulate: int = setting(
        1, "parts of a batch that are computed one after the other: less memory", least=1
    )
    optimizer: str = setting("adamw", "what makes updates of gradients", choices=trainer.OPTIMIZERS)
    # LoRA wants some ten times the learning rate of full fine-tuning, and short runs more still
    # (Schulman et al. 2025, "LoRA Without Regret").
    learning_rate: float = setting(3e-3, "peak of the schedule", least=0, most=100)
    schedule: str = setting(
        "cosine",
        "how the learning rate goes after the warm-up: cosine or linear to zero, constant, or wsd: "
        "constant, then linear to zero in the last fifth",
        choices=trainer.SCHEDULES,
    )
    warmup: float = setting(
        0.1, "share of the steps in which the learning rate rises", least=0, most=1
    )
    weight_decay: float = setting(0.0, "times the learning rate, on A and B", least=0, most=100)
    clip: float = setting(1.0, "largest norm of the gradient; 0 is no limit", least=0)
    rank: int = setting(8, "rank of A B")
    alpha: float = setting(16.0, "A B is multiplied by alpha / rank")
    rslora: bool = setting(False, "multiply A B by alpha / sqrt(rank) instead")
    method: str = setting("lora", "lora, or dora: a trained magnitude for each output beside it")
    init: str = setting(
        "kaiming",
        "A's and B's start: kaiming, gaussian, orthogonal, pissa, pissa_niter_N, olora, or from a "
        "few batches eva, lora_ga",
    )
    dropout: float = setting(0.0, "share of A's inputs left out in training")
    lora_plus: float = setting(1.0, "B's learning rate, in multiples of A's: LoRA+")
    freeze_a: bool = setting(False, "train B alone: LoRA-FA")
    bias: str = setting(
        "none", "biases that train whole: none, adapted or all; or lora: a bias on each B"
    )
    train: str = setting("", "regular expression: further weights that train whole")
    # Every linear layer, the MLPs above all: more is learned than from attention alone.
    targets: str = setting(
        "(q|k|v|o|gate|up|down)_proj",
        "regular expression: which weights get an adapter; or all-linear",
    )
    exclude: str = setting("", "regular expression: which of these get none")
    layers: list[int] | None = setting(
        None, "only these layers get an adapter, as 0-5,8", read=whole_numbers
    )
    rank_pattern: dict[str, Any] | None = setting(
        None,
        'other ranks by pattern, as {"down_proj": 16}; a list has one for each layer',
        read=by_pattern,
    )
    alpha_pattern: dict[str, Any] | None = setting(
        None, "other alphas in the same form", read=by_pattern
    )
    tokens: dict[str, Any] | None = setting(
        None, 'rows of the embedding that train, as {"embed": [5, 17]}', read=by_pattern
    )
    max_length: int = setting(512, "longest row, in tokens; what is longer is cut", least=2)
    train_rows: int = setting(1920, "sentences to sample for the home-assistant task", least=1)
    eval_rows: int = setting(160, "rows held out to measure before and after", least=1)
    max_new_tokens: int = setting(48, "longest answer in evaluation, in tokens", least=1)
    checkpoint_every: int = setting(60, "steps between checkpoints", least=1)
    on_nonfinite: str = setting(
        "stop",
        "what follows a loss or gradient that is no number: stop, or skip the batch",
        choices=("stop", "skip"),
    )
    seed: int = setting(0, "of the data, the order and A's start")
    dtype: str = setting(
        "float32", "of the frozen weights; A and B are float32", choices=("float32", "bfloat16")
    )
    attention: str = setting(
        "blocks",
        "blocks; on NVIDIA GPUs with --dtype bfloat16 also cudnn: its fused kernel",
        choices=("blocks", "cudnn"),
    )
    save_as: str = setting(
        "jlora",
        "jlora; or peft or mlx: the adapter in that format as well, in a folder of this name",
        choices=("jlora", "peft", "mlx"),
    )
    remat: bool = setting(False, "recompute layers whole in the backward pass: less memory, slower")


FREE = {"out", "checkpoint_every", "attention", "save_as", "on_nonfinite", "accumulate"}
OF_THE_ADAPTER = {field.name for field in dataclasses.fields(jlora.LoraConfig)} & {
    field.name for field in dataclasses.fields(Settings)
} - {"dtype"}
STARTS_FROM_DATA = ("eva", "lora_ga")
STARTS_FROM_DATA_READ = 8  # batches


SWITCHES = {
    "resume": "go on with the run in --out, with the settings that it was begun with",
    "overwrite": "replace the run in --out",
}
FOLDER_FLAGS = (
    "--out chooses another folder, --overwrite replaces what is there, --resume goes on with a run"
)


def settle(given: dict[str, Any], run: trainer.Run) -> Settings:
    """The settings of this run: those given, or on resuming those it was begun with."""
    resume, overwrite = given.pop("resume", False), given.pop("overwrite", False)
    check(Settings, given)
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: choose one")
    try:
        if not resume:
            run.claim(overwrite=overwrite)
            return Settings(**{"date": datetime.date.today().isoformat(), **given})
        begun = {**dataclasses.asdict(Settings()), **run.settings["settings"]}
    except ValueError as error:
        raise ValueError(f"{error}. {FOLDER_FLAGS}") from None
    changed = [
        f"{name} was {_shortened(begun[name])}, now {_shortened(value)}"
        for name, value in given.items()
        if name not in FREE and begun[name] != value
    ]
    if changed:
        raise ValueError(
            f"--resume: the run in {run.directory} was begun with other settings: "
            f"{'; '.join(changed)}. Leave these flags out, or choose another --out"
        )
    return Settings(**{**begun, **given})


def _shortened(value: Any) -> str:
    return repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."


# ------------------------------------------------------------------------------------------------
# Data
# ------------------------------------------------------------------------------------------------


ROWS = "rows"  # what the run writes of rows and tokens, to read them again


def load_rows(
    settings: Settings, folder: Path, resume: bool
) -> tuple[Sequence[data.Messages], Sequence[data.Messages]]:
    """Conversations (train, held out)."""
    if settings.data == "home-assistant":
        return data.home_assistant(settings.train_rows, settings.eval_rows, seed=settings.seed)
    rows = data.open_rows(
        settings.data, folder=folder, again=resume, columns=settings.columns, say=print
    )
    # Your own file is measured on at most a tenth of its rows.
    count = max(1, min(settings.eval_rows, len(rows) // 10))
    return data.hold_out(rows, count, seed=settings.seed)


# ------------------------------------------------------------------------------------------------
# Model and adapter
# ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run needs, checked and in memory."""

    settings: Settings
    run: trainer.Run
    model: models.Model
    config: jlora.LoraConfig
    frozen: Any
    lora: Any  # as it starts
    tx: optax.GradientTransformation
    loss: Callable[..., Any]  # (frozen, lora, batch) -> (sum, count)
    batches: data.Batches
    held_out: list[data.Messages]
    held_out_batches: data.Batches
    identity: dict[str, Any]  # of data and base: a resumed run must find the same


def prepare(settings: Settings, run: trainer.Run, resume: bool = False) -> Job:
    """Loads and checks everything; nothing is trained yet, and only ROWS is written."""
    config, tx = configuration(settings), optimizer(settings)
    folder = run.directory / ROWS
    rows, held_out = load_rows(settings, folder, resume)
    model = models.load(
        settings.model,
        dtype=settings.dtype,
        attention=settings.attention,
        template=settings.template,
        date=settings.date,
    )
    if isinstance(model, models.EncoderModel):
        raise ValueError(
            f"--model {settings.model} is an encoder ({model.config.family}), which writes no "
            "answers: expected a decoder"
        )
    if settings.max_length + settings.max_new_tokens > model.config.max_length:
        raise ValueError(
            f"--max-length {settings.max_length} and --max-new-tokens {settings.max_new_tokens} "
            f"are more than the {model.config.max_length} positions of {settings.model}"
        )
    asked = len(held_out)
    held_out = data.answerable(held_out, model.tokenizer, max_length=settings.max_length)
    limits = {"max_length": settings.max_length, "train_reasoning": settings.train_reasoning}
    if settings.batch_size % settings.accumulate:
        raise ValueError(
            f"--accumulate {settings.accumulate} does not divide --batch-size "
            f"{settings.batch_size}: expected a divisor"
        )
    examples, report = data.encode(rows, model.tokenizer, folder=folder, **limits)
    measured, _ = data.encode(held_out, model.tokenizer, **limits)
    batches = data.Batches(examples, batch_size=settings.batch_size, seed=settings.seed)

    # (params, batch) -> (summed loss of the answers' tokens, how many)
    loss = functools.partial(models.answer_loss, model, remat=settings.remat, head_trains=True)
    # of the model, not the loss: in the loss's loop over chunks the head is a product like others
    axes = jlora.trace_axes(model.apply, model.params, batches(0)["tokens"])
    config, frozen, lora = start(settings, config, axes, model.params, loss, batches)
    if not any(path.split("/")[0] in model.head_names for path in lora):
        loss = functools.partial(loss, head_trains=False)
    if model.tokenizer.template is None:
        print("template  the model has none: the default one is used (--template gives another)")
    print(f"train     {report}")
    print(f"held out  {len(held_out)} rows" + (f" of {asked}" if len(held_out) < asked else ""))
    print(f"shapes    (length, answers): {', '.join(map(str, batches.shapes))}")
    print(f"adapter   {jlora.summary(frozen, lora)}")
    return Job(
        settings=settings,
        run=run,
        model=model,
        config=config,
        frozen=frozen,
        lora=lora,
        tx=tx,
        loss=jlora.lift(loss),
        batches=batches,
        held_out=held_out,
        held_out_batches=data.Batches(measured, batch_size=16, shapes=1, shuffle=False),
        identity={
            "data": data.digest(rows, held_out),
            "base": checkpoint.fingerprint(model.params),
        },
    )


def configuration(settings: Settings) -> jlora.LoraConfig:
    """The flags that are jlora's own; a start from data begins with the default one."""
    fields = {name: getattr(settings, name) for name in OF_THE_ADAPTER}
    if settings.init in STARTS_FROM_DATA:
        del fields["init"]
    return jlora.LoraConfig(
        **{name: value for name, value in fields.items() if value not in ("", None)}
    )


def start(
    settings: Settings,
    config: jlora.LoraConfig,
    axes: jlora.TracedAxes,
    params: Any,
    loss: Callable[..., Any],
    batches: data.Batches,
) -> tuple[jlora.LoraConfig, Any, Any]:
    """(config, frozen, lora) at the start; the same again when a run is resumed."""
    key = jax.random.key(settings.seed)
    frozen, lora = jlora.split(params, config, key, axes=axes)
    if settings.init not in STARTS_FROM_DATA:
        return config, frozen, lora
    print(f"start     reading {STARTS_FROM_DATA_READ} batches for {settings.init} ...", flush=True)
    few = [batches(step) for step in range(STARTS_FROM_DATA_READ)]
    if settings.init == "eva":
        frozen, lora, config = jlora.eva(loss, frozen, lora, few, config, key)
    else:
        summed = lambda *args: loss(*args)[0]  # noqa: E731
        frozen, lora, config = jlora.lora_ga(summed, frozen, lora, few, config, key)
    return config, frozen, lora


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """What trains alone is updated: warm-up, schedule, gradients clipped."""
    rule = trainer.update_rule(
        settings.optimizer,
        trainer.schedule(
            settings.schedule,
            settings.learning_rate,
            steps=settings.steps,
            warmup=round(settings.warmup * settings.steps),
        ),
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        lora_plus=settings.lora_plus,
    )
    return jlora.optimizer(rule, freeze=frozen_fields(settings))


def frozen_fields(settings: Settings) -> tuple[str, ...]:
    """The fields of nodes that stay as they start."""
    return ("a",) if settings.freeze_a else ()


# ------------------------------------------------------------------------------------------------
# Evaluation
# ------------------------------------------------------------------------------------------------


RESULTS = "results"  # the scores, where a person and a resumed run find them


def answers_to(job: Job, held_out: Sequence[int], *weights: Any) -> list[str]:
    """The model's greedy answers to these of the held-out rows, without their own."""
    return models.answer(
        job.model,
        [job.held_out[at][:-1] for at in held_out],
        *weights,
        max_new_tokens=job.settings.max_new_tokens,
        batch_size=max(1, min(64, len(held_out))),
    )


def evaluate(job: Job, lora: Any) -> dict[str, Any]:
    """Loss, exact match and answers on the held-out rows."""
    batches = map(job.held_out_batches, range(job.held_out_batches.per_epoch))
    loss = trainer.mean_loss(jax.jit(job.loss), job.frozen, lora, batches)
    asked = [at for at, row in enumerate(job.held_out) if asks(row)]
    answers = [""] * len(job.held_out)
    for at, got in zip(asked, answers_to(job, asked, job.frozen, lora), strict=True):
        answers[at] = got
    wanted = [data.without_reasoning(data.text_of(job.held_out[at][-1])) for at in asked]
    right = [
        data.without_reasoning(answers[at]) == want for at, want in zip(asked, wanted, strict=True)
    ]
    return {
        "loss": loss,
        "exact_match": sum(right) / len(right) if right else None,
        "answers": answers,
    }


def asks(row: data.Messages) -> bool:
    """Whether the row has a question: one of plain text has none."""
    return len(row) > 1


def measured_before(job: Job) -> dict[str, Any]:
    """The scores of the fresh adapter, which are the base's: measured once in a run."""
    if recorded := job.run.recorded(RESULTS):
        return recorded["before"]
    print(f"before    answering {len(job.held_out)} held-out rows ...", flush=True)
    before = evaluate(job, job.lora)
    job.run.record(RESULTS, {"before": before})
    return before


# ------------------------------------------------------------------------------------------------
# The loop
# ------------------------------------------------------------------------------------------------


SKIPPED_AT_MOST = 10  # batches in a row whose loss or gradient is no number


def train(job: Job, state: trainer.TrainState) -> tuple[Any, int]:
    """The trained adapter, or the exit status of a run that stopped early."""
    settings, run, start = job.settings, job.run, int(state.step)
    trains = functools.partial(jlora.mask, freeze=frozen_fields(settings))
    step = trainer.make_step(job.loss, job.tx, accumulate=settings.accumulate, trains=trains)
    skipped = 0
    with (
        monitor.stop_on_signals() as stop,
        monitor.Metrics(run.directory / "metrics.jsonl", resume_at=start) as metrics,
        tqdm(
            total=settings.steps,
            initial=start,
            unit="step",
            mininterval=0.1 if sys.stderr.isatty() else 30,
        ) as bar,
    ):
        began = time.perf_counter()
        for update in trainer.iterate(step, job.frozen, state, job.batches, steps=settings.steps):
            state, number = update.state, update.number
            seen = jax.device_get(update.metrics)  # waits for the device, once
            values = {name: float(seen[name]) for name in ("loss", "grad_norm")}
            now = time.perf_counter()
            seconds, began = now - began, now
            if not seen["finite"]:
                skipped += 1
                where = written_down(job, number, values)
                if settings.on_nonfinite == "stop" or skipped == SKIPPED_AT_MOST:
                    save(run, number - skipped, state)
                    return None, diverged(job, number, values, skipped, where)
                line = f"step {number}: {no_number(values)}: skipped, see {where}"
                bar.write(line, file=sys.stderr)
            else:
                skipped = 0
            tokens = job.batches.tokens(number - 1)
            metrics.write(number, {**values, "tokens": tokens, "seconds": round(seconds, 3)})
            bar.set_postfix(
                {"loss": f"{values['loss']:.3f}", "tokens/s": f"{tokens / seconds:.0f}"},
                refresh=False,
            )
            bar.update()
            if number % settings.checkpoint_every == 0 or update.last or stop.requested:
                save(run, number, state)
            if stop.requested:
                break
        else:
            return state.lora, 0
    assert stop.signal is not None  # the one other way out of the loop
    return None, fail(
        f"stopped by {stop.signal.name} after step {number}, which is saved. {go_on(run)}",
        status=128 + stop.signal,
    )


def save(run: trainer.Run, number: int, state: trainer.TrainState) -> None:
    """Keeps what the run needs to go on after this step; before the first that is nothing."""
    if number:
        run.save(number, {"lora": state.lora, "opt_state": state.opt_state})


def written_down(job: Job, number: int, values: dict[str, float]) -> str:
    """The file that holds the batch whose loss or gradient is no number."""
    rows = [job.batches.examples[row] for row in job.batches.rows(number - 1)]
    said = {name: str(value) for name, value in values.items()}
    texts = [job.model.tokenizer.decode(row.tokens) for row in rows]
    job.run.record(f"not-finite-{number}", {"step": number, **said, "rows": texts})
    return str(job.run.directory / f"not-finite-{number}.json")


def no_number(values: dict[str, float]) -> str:
    """What the loss and the gradient's norm are, in words."""
    return f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']}"


def diverged(job: Job, step: int, values: dict[str, float], skipped: int, where: str) -> int:
    """Says that the loss is no number any more, and what is left."""
    last = job.run.latest_step
    streak = f", for the {skipped}th time in a row" if skipped > 1 else ""
    return fail(
        f"at step {step} {no_number(values)}{streak}, so training stopped; {where} holds the rows. "
        + (f"The checkpoint of step {last} in {job.run.directory} is good. " if last else "")
        + f"Try a --learning-rate below {job.settings.learning_rate}, or --on-nonfinite skip",
        status=1,
    )


# ------------------------------------------------------------------------------------------------
# What came out
# ------------------------------------------------------------------------------------------------

CHECKED = 32  # held-out rows on which the saved, merged model must answer as the adapted one


def finish(job: Job, lora: Any, before: dict[str, Any]) -> None:
    """Measures, saves, reloads, merges and compares; says where everything is."""
    out, settings, config, base = job.run.directory, job.settings, job.config, job.model.params
    after = evaluate(job, lora)
    if job.frozen is not base:  # the start took weight into the adapter
        lora, config = jlora.rebase(lora, job.lora, config)
    scores = {"before": before, "after": after}
    job.run.record(RESULTS, scores)
    monitor.draw(out / "training.png", monitor.read_metrics(out / "metrics.jsonl"), scores)
    about = {
        "model": settings.model,
        "dtype": settings.dtype,
        "system": system_of(job),
        "settings": dataclasses.asdict(settings),
    }
    checkpoint.save(out / "adapter", lora, config, base=base, metadata=about, overwrite=True)
    if settings.save_as != "jlora":
        peft.publish(
            out / settings.save_as,
            lora,
            config,
            job.model,
            format=settings.save_as,
            about=about,
            scores=scores,
            overwrite=True,
        )
    restored, _ = checkpoint.restore(out / "adapter", base=base)
    merged = jlora.merge(base, restored)
    checked = [at for at, row in enumerate(job.held_out) if asks(row)][:CHECKED]
    again = answers_to(job, checked, merged)
    same = sum(got == after["answers"][at] for at, got in zip(checked, again, strict=True))

    print(monitor.compared(job.held_out, scores))
    if checked:
        print(f"reloaded and merged, it gives the same answer to {same} of {len(checked)} rows")
    question = data.text_of(job.held_out[checked[0]][-2]) if checked else "..."
    print(
        f"\nadapter   {out / 'adapter'}\nmetrics   {out / 'metrics.jsonl'}\n"
        f"figure    {out / 'training.png'}\n\n"
        f"python -m jlora generate --adapter {out / 'adapter'} --prompt {json.dumps(question)}"
    )


def check_identity(run: trainer.Run, identity: dict[str, Any]) -> None:
    """Raises a ValueError when a resumed run would go on with other data or on another base."""
    begun = run.settings
    if changed := checkpoint.differences(begun["base"], identity["base"]):
        raise ValueError(f"--resume: the base model changed: {'; '.join(changed[:5])}")
    if begun["data"] != identity["data"]:
        raise ValueError(f"--resume: the rows of {begun['settings']['data']} changed since")


def system_of(job: Job) -> str | None:
    """The system message, if all rows have the same one: answers need it again."""
    first = {data.text_of(row[0]) if row[0]["role"] == "system" else None for row in job.held_out}
    return first.pop() if len(first) == 1 else None


def go_on(run: trainer.Run) -> str:
    """The command that resumes the run."""
    return f"Go on with: python train.py --out {run.directory} --resume"


def fail(message: str, status: int = 2) -> int:
    """Says on one line of stderr what is wrong, and gives the exit status back."""
    print(f"train.py: {message}", file=sys.stderr)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input, 1 if the run broke off, 128 + the signal it got."""
    given = parse(Settings, argv, description=__doc__ or "", switches=SWITCHES)
    resume = given.get("resume", False)
    run = trainer.Run(given.get("out", Settings.out))
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run.locked())
            settings = settle(given, run)
            compiled.keep()
            job = prepare(settings, run, resume)
            state = trainer.init(job.lora, job.tx, jax.random.key(settings.seed))
            if resume:
                check_identity(run, job.identity)
                if run.latest_step is not None:
                    begun = {"lora": state.lora, "opt_state": state.opt_state}
                    number, saved, _ = run.restore(begun, say=print)
                    state = dataclasses.replace(state, step=jnp.int32(number), **saved)
            else:
                run.begin({"settings": dataclasses.asdict(settings), **job.identity})
                run.record(RESULTS, {})
        except (ValueError, OSError) as error:
            return fail(str(error))
        except KeyboardInterrupt:
            return fail("interrupted before the first step", 130)
        try:
            before = measured_before(job)
            lora, status = train(job, state)
            if status:
                return status
            finish(job, lora, before)
            print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes, {monitor.peak_memory()}")
        except KeyboardInterrupt:
            return fail(f"interrupted. {go_on(run)}", 130)
        except OSError as error:
            return fail(f"{error}. What was saved before is whole. {go_on(run)}", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
