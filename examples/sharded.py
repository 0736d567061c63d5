"""A model on a mesh: weights, adapter and batches over devices, and the losses of one device.

    python examples/sharded.py

A small decoder lies on 2 x 4 devices: rows go along ``fsdp``, and so do the weights; heads, MLPs
and the vocabulary along ``model``. Its adapter is trained there, saved, and restored on another
mesh. The CPU stands for eight devices; JAX_PLATFORMS=tpu takes eight real ones. A model in a file
is read so by ``models.load(source, mesh=layout)``.

It prints

    embed/embedding            (64, 32) of which a device holds (16, 16)
    layers/attn/q_proj/kernel  (2, 32, 32) of which a device holds (2, 16, 8)
    A of q_proj                (2, 32, 4) of which a device holds (2, 16, 4)
    tokens                     (8, 16) of which a device holds (4, 16)
    losses on 8 devices and on 1 differ by less than 1e-4: True
    restored on data=8, the adapter is the same: True
"""

import tempfile

import flax.traverse_util
import jax
import numpy as np
import optax

import jlora
from jlora import checkpoint, models, trainer

jax.config.update("jax_platforms", jax.config.jax_platforms or "cpu")
jax.config.update("jax_num_cpu_devices", 8)

STEPS, ROWS, LENGTH = 10, 8, 16
CONFIG = models.DecoderConfig(
    vocabulary=64, width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp_width=48, max_length=64
)


def batch(number):
    """Rows of tokens: what each position says next, and which of them count."""
    tokens = np.random.default_rng(number).integers(0, 64, (ROWS, 1)) + np.arange(LENGTH)
    return {"tokens": (tokens % 64).astype(np.int32)}


def model_on(layout):
    """The same random decoder on any devices."""
    init = models.Decoder(CONFIG).init
    params = jax.jit(init)(jax.random.key(0), np.ones((1, 1), np.int32))["params"]
    if layout is not None:
        places = layout.weights(CONFIG, models.expected_shapes(CONFIG))
        params = jax.device_put(params, flax.traverse_util.unflatten_dict(places, sep="/"))
    return models.Model(params, CONFIG, tokenizer=None, name="small", layout=layout)


def trained(layout):
    """(frozen, lora, losses) after a few steps; on one device without a layout."""
    model = model_on(layout)

    def loss(params, batch):
        logits = model.apply(params, batch["tokens"])
        return trainer.cross_entropy(logits[:, :-1], batch["tokens"][:, 1:])

    config = jlora.LoraConfig(targets="q_proj|v_proj", rank=4)
    axes = jlora.trace_axes(model.apply, model.params, batch(0)["tokens"])
    frozen, lora = jlora.split(model.params, config, jax.random.key(1), axes=axes)
    batches = batch
    if layout is not None:
        lora = jax.device_put(lora, layout.of_adapter(frozen, lora))
        batches = trainer.sharded(batch, layout.rows)
    tx = jlora.optimizer(optax.adam(1e-2))
    step = trainer.make_step(jlora.lift(loss), tx)
    state, losses = trainer.init(lora, tx, jax.random.key(2)), []
    for number in range(STEPS):
        state, metrics = step(frozen, state, batches(number))
        losses.append(float(metrics["loss"]))
    return config, frozen, state.lora, losses


def show(name, array):
    """What of an array one device holds."""
    part = array.sharding.shard_shape(array.shape)
    print(f"{name:26} {array.shape} of which a device holds {part}")


def main():
    """Trains on a mesh and on one device, and moves the adapter to another mesh."""
    layout = models.Layout(models.make_mesh({"fsdp": 2, "model": 4}), small=0)
    config, frozen, lora, losses = trained(layout)
    flat = flax.traverse_util.flatten_dict(model_on(layout).params, sep="/")
    query = next(path for path in lora if path.endswith("q_proj/kernel"))
    show("embed/embedding", flat["embed/embedding"])
    show(query, flat[query])
    show("A of q_proj", lora[query].a)
    show("tokens", trainer.sharded(batch, layout.rows)(0)["tokens"])

    *_, alone = trained(None)
    close = np.abs(np.subtract(losses, alone)).max() < 1e-4
    print(f"losses on {layout.mesh.size} devices and on 1 differ by less than 1e-4: {close}")

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/adapter", lora, config, base=frozen)
        other = model_on(models.Layout(models.make_mesh({"data": 8})))
        restored, _ = checkpoint.restore(f"{folder}/adapter", base=other.params)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), lora, restored)
    print(f"restored on data=8, the adapter is the same: {all(jax.tree.leaves(same))}")


if __name__ == "__main__":
    main()
