"""A train step of SmolLM2 with LoRA on every linear layer: jlora against PEFT on PyTorch.

    pip install -e ".[oracle]" && python -m benchmarks.against_peft

Each library has a process of its own with the same weights, tokens and AdamW; they take turns, so
that both meet the machine as it is. Peak memory is that of the steps, without loading (Linux).
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._shared.table import Table, add_save, versions

RANK, ALPHA, RATE = 8, 16.0, 1e-3
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tokens_of(rows: int, length: int, vocabulary: int) -> np.ndarray:
    """The same random text for both."""
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length)).astype(np.int32)


def jlora_step(rows: int, length: int, compiled: bool) -> Callable[[], float]:
    """One update by jlora; gives the loss."""
    import jax
    import optax

    import jlora
    from jlora import models, trainer

    model = models.load("smollm2")
    tokens = tokens_of(rows, length, model.config.vocabulary)
    batch = {
        "tokens": tokens,
        "positions": np.tile(np.arange(length - 1, dtype=np.int32), (rows, 1)),
        "labels": tokens[:, 1:],
        "weights": np.ones((rows, length - 1), np.float32),
    }

    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(targets="|".join(LINEAR), rank=RANK, alpha=ALPHA)
    frozen, lora = jlora.split(model.params, config, jax.random.key(0), axes=axes)
    tx = jlora.optimizer(optax.adamw(RATE, weight_decay=0.01))
    loss = functools.partial(models.answer_loss, model)
    step = trainer.make_step(jlora.lift(loss, strict=True), tx)
    state = trainer.init(lora, tx, jax.random.key(1))

    def run() -> float:
        nonlocal state
        state, metrics = step(frozen, state, batch)
        return float(metrics["loss"])

    return run


def peft_step(rows: int, length: int, compiled: bool) -> Callable[[], float]:
    """One update by PEFT on PyTorch; gives the loss."""
    import peft
    import torch
    import transformers

    from jlora import models

    path = models.located("smollm2")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR)  # type: ignore
    model: Any = peft.get_peft_model(base, config).train()
    tokens = torch.tensor(tokens_of(rows, length, base.config.vocab_size), dtype=torch.long)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    forward: Any = torch.compile(model) if compiled else model

    def run() -> float:
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


STEPS = {"jlora": jlora_step, "PEFT": peft_step}


def worker(name: str, rows: int, length: int, compiled: bool) -> None:
    """Takes a step for each line of stdin and answers with what it saw."""
    run = STEPS[name](rows, length, compiled)
    first = run()  # compiles, and allocates what stays
    run()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    print(json.dumps({"first_loss": first}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        with open("/proc/self/status") as file:
            [peak] = [int(line.split()[1]) for line in file if line.startswith("VmHWM")]
        print(json.dumps({"seconds": seconds, "peak": peak * 1024}), flush=True)


def ask(process: subprocess.Popen) -> dict[str, Any]:
    """The worker's next line of JSON; what else it prints is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit("a worker stopped before its answer")


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile for PEFT")
    add_save(parser)
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.rows, given.length, given.compile)
    processes, losses = {}, {}
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.against_peft", *sys.argv[1:], "--worker", name]
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        losses[name] = ask(processes[name])["first_loss"]
    seen: dict[str, list[dict]] = {name: [] for name in STEPS}
    for _ in range(given.rounds):
        for name, process in processes.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            seen[name].append(ask(process))
    for process in processes.values():
        process.communicate()
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(seen["jlora"], seen["PEFT"], strict=True)]
    table = Table(
        "",
        "seconds a step",
        "tokens/s",
        "peak memory",
        "first loss",
        "jlora's tokens/s, of PEFT's",
        "its memory",
    )
    peaks = {name: max(one["peak"] for one in rounds) for name, rounds in seen.items()}
    compared = {
        "PEFT": (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{peaks['jlora'] / peaks['PEFT']:.2f}",
        )
    }
    for name, rounds in seen.items():
        seconds = statistics.median(one["seconds"] for one in rounds)
        table.row(
            name + ", compiled" * (given.compile and name == "PEFT"),
            f"{seconds:.2f}",
            f"{given.rows * given.length / seconds:.0f}",
            f"{peaks[name] / 2**30:.2f} GiB",
            f"{losses[name]:.4f}",
            *compared.get(name, ("", "")),
        )
    name = "against-peft" + "-compiled" * given.compile
    table.keep(name, given.save, versions("jax", "peft", "torch", "transformers"))


if __name__ == "__main__":
    main()
