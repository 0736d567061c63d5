"""What a fine-tuning run is made of: one dataclass, each field of which is a flag."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

import jlora
from jlora import trainer
from jlora._weighted import weighted
from jlora.finetune import _kinds
from jlora.finetune._kinds import UNSHOWN, Range

# Every linear layer, the MLPs above all: more is learned than from attention alone.
ADAPTER = jlora.LoraConfig(targets="(q|k|v|o|gate|up|down)_proj", rank=8, alpha=16.0)
STARTS_FROM_DATA = ("eva", "lora_ga")
HOME_ASSISTANT = "home-assistant"
STEPS = 640


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of. The defaults are tuned for the default task on two CPU cores.

    A field is a flag of `settings`, a key of a ``run.toml``, and an argument here; the fields of
    ``lora`` are flags and keys themselves. `problems` says which values can't be.

    Example:
        >>> from jlora import finetune
        >>> settings = finetune.Settings(data=("rows.jsonl",), steps=100)
        >>> settings.lora.rank, settings.folder
        (8, 'runs/smollm2-rows')
    """

    model: str = "smollm2"
    """smollm2, a .gguf file, a Hugging Face folder or a Hugging Face hub id"""
    data: tuple[str, ...] = (HOME_ASSISTANT,)
    """home-assistant; or rows: a file, a folder, -, a hub data set; or several: a.jsonl=2 b.csv"""
    task: Annotated[str, UNSHOWN] = ""
    """home-assistant, rows, classify, or a file of your own with a class Task (as --data asks)"""
    columns: Annotated[dict[str, str] | None, _kinds.NAMES, UNSHOWN] = None
    """other names of the rows' keys, as prompt=question,completion=answer"""
    labels: Annotated[tuple[str, ...] | None, _kinds.WORDS, UNSHOWN] = None
    """for --task classify: the labels in their order, as no,yes (those of the rows, sorted)"""
    template: Annotated[str, _kinds.TEMPLATE, UNSHOWN] = ""
    """file: a chat template in the place of the model's own"""
    train_on: Literal["all", "last"] = "all"
    """which turns of the assistant train: all, or the last of each row"""
    train_reasoning: bool = False
    """train the reasoning in answers too"""
    date: Annotated[str, _kinds.DAY, UNSHOWN] = ""
    """what templates take for today (the day on which the run began)"""
    out: Annotated[str, UNSHOWN] = ""
    """folder for everything that the run writes (runs/MODEL-DATA)"""

    steps: Annotated[int | None, _kinds.STEPS, UNSHOWN, Range(least=1, most=10**9)] = None
    """updates of the adapter (640, or what --epochs comes to)"""
    epochs: Annotated[float, Range(least=0, most=10**6)] = 0.0
    """passes over the rows, in the place of --steps"""
    # Many small updates: the same 1920 rows gave 49 % in batches of 16, 74 % of 8, 84 % of 4.
    batch_size: Annotated[int, Range(least=1, most=10**6)] = 4
    """rows in an update"""
    accumulate: Annotated[int, Range(least=1)] = 1
    """parts of a batch that are computed one after the other: less memory"""
    optimizer: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = "adamw"
    """what makes updates of gradients"""
    # LoRA wants some ten times the learning rate of full fine-tuning, and short runs more still
    # (Schulman et al. 2025, "LoRA Without Regret").
    learning_rate: Annotated[float, Range(least=0, most=100)] = 3e-3
    """peak of the schedule"""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """of the learning rate: cosine or linear to zero; constant; wsd: to zero in the last fifth"""
    warmup: Annotated[float, Range(least=0, most=1)] = 0.1
    """share of the steps in which the learning rate rises"""
    weight_decay: Annotated[float, Range(least=0, most=100)] = 0.0
    """times the learning rate, on A and B"""
    clip: Annotated[float, Range(least=0)] = 1.0
    """largest norm of the gradient; 0 is no limit"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """what follows a loss or gradient that is no number: stop, or skip the batch"""

    lora: Annotated[jlora.LoraConfig, tyro.conf.arg(name="")] = ADAPTER
    init: str = "kaiming"
    """of A and B: kaiming, gaussian, orthogonal, pissa, olora; or from batches: eva, lora_ga"""
    adapter: Annotated[str, UNSHOWN] = ""
    """a saved adapter to start from, jlora's or PEFT's, in the place of a fresh one"""
    lora_plus: Annotated[float, Range(least=0, most=10**6)] = 1.0
    """B's learning rate, in multiples of A's: LoRA+"""
    freeze_a: bool = False
    """train B alone: LoRA-FA"""

    max_length: Annotated[int, Range(least=2, most=2**24)] = 512
    """longest row, in tokens; what is longer is cut"""
    pack: bool = False
    """let rows share sequences of --max-length tokens, which a batch then has --batch-size of"""
    train_rows: Annotated[int, Range(least=1, most=10**7)] = 1920
    """sentences to sample for the home-assistant task"""
    eval_rows: Annotated[int, Range(least=1, most=10**7)] = 160
    """rows held out to measure before and after; of your own at most a tenth"""
    eval_split: Annotated[float, Range(least=0, most=0.9)] = 0.0
    """share of the rows held out, in the place of --eval-rows"""
    eval_data: Annotated[str, UNSHOWN] = ""
    """rows to measure on, in the place of some of --data"""
    eval_every: Annotated[int, Range(least=0)] = 0
    """steps between measurements during training; 0: before and after it alone"""
    eval_answers: bool = False
    """let the model answer during training too, not only after it"""
    best_by: str = "loss"
    """whose best is the best adapter: loss; exact_match; accuracy or macro_f1 of labels"""
    patience: Annotated[int, Range(least=0)] = 0
    """measurements that are no better than the best after which training ends; 0: never"""
    max_new_tokens: Annotated[int, Range(least=1, most=2**20)] = 48
    """longest answer in evaluation, in tokens"""
    checkpoint_every: Annotated[int, Range(least=1)] = 60
    """steps between checkpoints"""
    keep: Annotated[int, Range(least=1)] = 2
    """checkpoints that are kept, the best one beside them"""
    log: tuple[str, ...] = ()
    """tensorboard, wandb, trackio: where numbers go beside metrics.jsonl"""
    seed: Annotated[int, Range(least=-(2**31), most=2**31 - 1)] = 0
    """of the data, the order and A's start"""

    mesh: Annotated[dict[str, int] | None, _kinds.SIZES, UNSHOWN] = None
    """data=2,model=4, or fsdp=-1 for all devices (rows over as many as divide them)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the frozen weights; A and B are float32"""
    quantize: Literal["none", "int8", "nf4", "stored"] = "none"
    """of the frozen weights: none; 8 or 4 bits; or stored: as the files have them"""
    precision: Literal["", "default", "high", "highest"] = ""
    """of products of float32 on TPUs and GPUs: default, high, highest (the environment's)"""
    attention: Literal["blocks", "cudnn"] = "blocks"
    """blocks; on NVIDIA GPUs with --dtype bfloat16 also cudnn: its fused kernel"""
    remat: Literal["none", "products", "full"] = "products"
    """what layers keep for the gradient: everything, products' results, or their inputs alone"""
    save_as: Literal["jlora", "peft", "mlx"] = "jlora"
    """jlora; or peft or mlx: the adapter in that format as well, in a folder of this name"""

    @property
    def quantized(self) -> str | None:
        """``quantize`` as `jlora.models.load` takes it."""
        return None if self.quantize == "none" else self.quantize

    @property
    def folder(self) -> str:
        """Where the run writes: ``out``, or a folder named after model and data."""
        if self.out:
            return self.out
        of_task = bool(self.task) and self.data == (HOME_ASSISTANT,)
        if self.data == (HOME_ASSISTANT,) and self.model == "smollm2" and not of_task:
            return f"runs/{HOME_ASSISTANT}"
        data = "-".join(_stem(source) for source, _ in self.sources)
        data = _stem(self.task) if of_task else data
        return f"runs/{_stem(self.model)}-{data}"[:120]

    @property
    def sources(self) -> tuple[tuple[str, float], ...]:
        """(what to read rows from, its weight) of each entry of ``data``."""
        return tuple(map(weighted, self.data))

    @property
    def frozen_fields(self) -> tuple[str, ...]:
        """The fields of an adapter's nodes that stay as they start."""
        return ("a",) if self.freeze_a else ()

    @property
    def adapter_config(self) -> jlora.LoraConfig:
        """``lora`` with the start that ``init`` names.

        Raises:
            ValueError: when there is no such start.
        """
        return dataclasses.replace(self.lora, init=self.init)

    @property
    def task_name(self) -> str:
        """``task``, or the one that goes with the data."""
        return self.task or (HOME_ASSISTANT if self.data == (HOME_ASSISTANT,) else "rows")

    def total_steps(self, per_epoch: int) -> int:
        """Updates in all, of so many in a pass over the rows; the last may be part of one."""
        return math.ceil(self.epochs * per_epoch) if self.epochs else self.steps or STEPS

    def check_patience(self, steps: int) -> None:
        """Raises a ValueError where so many steps, the last measured too, never use it up."""
        if self.patience:
            measurements = math.ceil(steps / self.eval_every)
            best = trainer.Best("loss", "lower", patience=self.patience)
            try:
                best.check(["loss"], evaluations=measurements)
            except ValueError as error:
                raise ValueError(f"--patience, --eval-every: {error}") from None

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name, those of ``lora`` too, as JSON keeps them."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "lora"}
        return own | {name: getattr(self.lora, name) for name in _kinds.OF_LORA}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Settings:
        """The settings of `flat`; what it does not name has its default.

        Raises:
            ValueError: when a name is no setting's, or a value can't be.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"lora"}
        if unknown := flat.keys() - names - _kinds.OF_LORA.keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: no settings of this version of jlora")
        own = {name: flat[name] for name in names & flat.keys()}
        own: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in own.items()
        }
        if isinstance(own.get("data"), str):  # as before there could be several
            own["data"] = (own["data"],)
        if isinstance(own.get("remat"), bool):  # as before it had names
            own["remat"] = "full" if own["remat"] else "products"
        lora = {name: flat[name] for name in _kinds.OF_LORA if flat.get(name) not in (None, "")}
        return cls(**own, lora=dataclasses.replace(ADAPTER, **lora))

    def problems(self) -> Iterator[str]:
        """What can't be, one sentence each: values out of their range, and combinations."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for each in getattr(hint, "__metadata__", ()):
                if isinstance(each, Range) and value is not None and not each.holds(value):
                    yield f"{flag(name)} is {value}: expected {each}"
        if self.init not in STARTS_FROM_DATA:
            try:
                _ = self.adapter_config
            except ValueError as error:
                yield str(error)
        if self.steps is not None and self.epochs:
            yield "--steps and --epochs exclude each other: choose one"
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            yield (
                f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}: "
                "expected a divisor"
            )
        if self.eval_data and self.eval_split:
            yield "--eval-data and --eval-split exclude each other: choose one"
        if self.pack and self.attention != "blocks":
            yield f"--pack needs --attention blocks: {self.attention} does not keep rows apart"
        if self.patience and not self.eval_every:
            yield "--patience counts measurements during training: give --eval-every too"
        elif self.patience > 0 and self.eval_every > 0 and not self.epochs:
            try:
                self.check_patience(self.steps or STEPS)
            except ValueError as error:
                yield str(error)
        if self.eval_answers and not self.eval_every:
            yield "--eval-answers asks during training: give --eval-every too"
        if problem := _of_loggers(self.log):
            yield problem
        if self.adapter and self.init != "kaiming":
            yield "--adapter and --init exclude each other: a saved adapter has its start"
        if self.adapter and self.lora != ADAPTER:
            given = [n for n in _kinds.OF_LORA if getattr(self.lora, n) != getattr(ADAPTER, n)]
            flags = ", ".join(map(flag, given))
            yield f"--adapter has its own {', '.join(given)}: leave {flags} out"
        if self.task in ("rows", "classify") and self.data == (HOME_ASSISTANT,):
            yield f"--task {self.task} reads rows: give --data"
        sources = [source for source, _ in self.sources] + [self.eval_data]
        if sources.count("-") > (self.task != "classify"):
            yield "standard input is read once, and not for --task classify: give files"
        if len(self.data) > 1 and HOME_ASSISTANT in self.data:
            yield "--data home-assistant is sampled, not read: expected it alone"
        if any(not 0 < weight < math.inf for _, weight in self.sources):
            yield f"--data {' '.join(self.data)}: expected weights above 0"


def flag(name: str) -> str:
    """How a field is written on the command line."""
    return "--" + name.replace("_", "-")


def _of_loggers(names: tuple[str, ...]) -> str:
    """What is wrong with these loggers, or nothing."""
    try:
        trainer.check_loggers(names)
    except ValueError as error:
        return f"--log: {error}"
    return ""


def _stem(source: str) -> str:
    """A name for a folder after a file, a folder or a hub id."""
    name = "stdin" if source == "-" else Path(source.rstrip("/")).name.partition(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "data"
