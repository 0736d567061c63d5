"""What the processes of a pair run: `programs.py NAME PORT PROCESS FOLDER ARGUMENTS`."""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import bases_of_two
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from jlora import checkpoint, trainer

ME = int(sys.argv[3])
FOLDER = Path(sys.argv[4])


def say(*words):
    print(*words, flush=True)


def failure(do):
    """The error in one line; the processes go on."""
    try:
        do()
    except (ValueError, OSError, RuntimeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return "none"


def agreements():
    say(trainer.agreed("same", {"rank": 8}))
    say(failure(lambda: trainer.agreed("settings", {"rank": 8 - 4 * ME, "steps": 7})))
    say(trainer.by_first("day", lambda: f"day of {ME}"))

    def unwritable():
        raise OSError(f"process {ME}: read-only")

    say(failure(lambda: trainer.by_first("begin", unwritable)))
    for turn in range(20):  # one name, used again at once
        assert trainer.by_first("turn", lambda turn=turn: turn) == turn
    run = trainer.Run(FOLDER / "run" if ME == 0 else FOLDER / "elsewhere")
    started = trainer.by_first("a folder", lambda: str(FOLDER / "run"))
    with trainer.Run(started).locked():
        say("locked")
    say(failure(lambda: trainer.Run("gs://bucket/run")))
    say(failure(lambda: trainer.start_processes()))
    del run
    # the last: an absent process leaves the barrier of this name
    if ME == 0:
        say(failure(lambda: trainer.by_first("the slow one", lambda: 1, seconds=2)))
    else:
        time.sleep(3)


def fingerprints():
    for types in ("Auto", "Explicit"):
        kind = getattr(jax.sharding.AxisType, types)
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
        base, other = bases_of_two.bases(mesh)
        say(json.dumps(checkpoint.fingerprint(base)))
        folder = FOLDER / types
        config = jlora.LoraConfig(targets="cut", rank=2)
        _, lora = jlora.split(base, config, jax.random.key(0))
        checkpoint.save(folder, bases_of_two.laid_out(lora, mesh, ()), config, base=base)
        checkpoint.restore(folder, base=base)
        say(failure(lambda folder=folder, other=other: checkpoint.restore(folder, base=other)))
    own = lora  # in each process one of its own
    say(failure(lambda: checkpoint.save(FOLDER / "own", own, config, base=base)))
    checkpoint.save(
        FOLDER / "own", jax.device_put(own, jlora.shardings(base, own)), config, base=base
    )
    few = {"cut": base["cut"]} if ME else base
    say(failure(lambda: checkpoint.fingerprint(few)))


def made():
    """A step, frozen, a state and batches: the rows over the devices of both processes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def placed(array, where):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda at: array[at])

    def loss(params, batch):
        errors = (batch["x"] @ params["kernel"] - batch["y"]) ** 2
        return errors.sum(), errors.size

    config = jlora.LoraConfig(targets="kernel", rank=2)
    start = np.random.default_rng(0)
    kernel = jnp.asarray(start.normal(size=(7, 5)), jnp.float32)
    frozen, lora = jlora.split({"kernel": kernel}, config, jax.random.key(0))
    frozen, lora = jax.tree.map(lambda leaf: placed(leaf, whole), (frozen, lora))
    tx = jlora.optimizer(optax.adam(1e-2))
    step = trainer.make_step(jlora.lift(loss), tx)
    data = jax.random.key_data(jax.random.key(1))
    key = jax.random.wrap_key_data(placed(data, whole))
    state = jax.jit(lambda lora, key: trainer.init(lora, tx, key))(lora, key)

    def batches(number):
        rows = np.random.default_rng(number)
        return {
            "x": placed(rows.normal(size=(16, 7)).astype("f"), over),
            "y": placed(rows.normal(size=(16, 5)).astype("f"), over),
        }

    return step, frozen, state, batches


def digest(tree):
    """Of the bytes of this process's first copy of each leaf."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            assert (np.asarray(shard.data) == np.asarray(leaf.addressable_data(0))).all()
        found.update(np.asarray(leaf.addressable_data(0)).tobytes())
    return found.hexdigest()[:16]


def stopping():
    step, frozen, state, batches = made()
    text = step.lower(frozen, state, batches(0)).as_text()
    say("program", hashlib.sha256(text.encode()).hexdigest()[:16])
    run = trainer.Run(FOLDER / "run")
    best = trainer.Best("loss", "lower", patience=3)
    with run.locked():
        run.begin({"rank": 2})
        with trainer.stop_on_signals() as stop:
            for update in trainer.iterate(step, frozen, state, batches, steps=100_000):
                state, number = update.state, update.number
                told = jax.device_get(update.metrics)
                best = best.after(number, {"loss": float(told["loss"])})
                if ME == 1 and number == 12:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.002 * ME)
                if stop.requested:
                    break
        say("stopped", number, stop.signal.name, float(told["loss"]))
        say("best", best.step, best.value, best.waited)
        say("state", digest((state.lora, state.opt_state)))
        run.save(number, {"lora": state.lora, "opt": state.opt_state}, notes={"at": number})
        say("saved", run.steps)


def unwritable():
    """Process 1 can't write a byte into a file from here on."""
    _, _, state, _ = made()
    run = trainer.Run(FOLDER / "run")
    with run.locked():
        run.begin({"rank": 2})
        run.save(1, {"lora": state.lora})
        if ME == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        say(failure(lambda: run.save(2, {"lora": state.lora})))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        run.save(3, {"lora": state.lora})
        say(run.steps)


def dying():
    step, frozen, state, batches = made()
    for update in trainer.iterate(step, frozen, state, batches, steps=100_000):
        jax.device_get(update.metrics)
        if update.number == 5:
            say("training")
            if ME == 1:
                (FOLDER / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trainer.start_processes(f"127.0.0.1:{sys.argv[2]}", processes=2, process_id=ME, seconds=60)
    globals()[sys.argv[1]]()
    jax.distributed.shutdown()
