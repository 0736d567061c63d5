"""What each method costs beside plain LoRA: FLOPs and memory of one compiled train step.

    python -m benchmarks.method_costs

Nothing runs: the figures are the compiler's own, memory for a llama of 4 scanned layers, FLOPs for
one of 1 layer, because the compiler counts the body of a loop once.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import jlora
from benchmarks._shared.table import Table, add_save, versions
from jlora import trainer
from jlora.models import Decoder, DecoderConfig

LLAMA = DecoderConfig(
    vocabulary=512, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp_width=768,
    max_length=256, norm_epsilon=1e-5, rope_theta=1e4, tied=True, family="llama",
)  # fmt: skip
TOKENS = jax.ShapeDtypeStruct((4, 256), "int32")
RANK = 8

# name: (configuration, optimizer's freeze)
METHODS = {
    "LoRA": ({}, ()),
    "rsLoRA": ({"rslora": True}, ()),
    "PiSSA, OLoRA, orthogonal, EVA, LoRA-GA": ({"init": "pissa"}, ()),
    "LoRA+": ({}, ()),
    "LoRA-FA": ({}, ("a",)),
    "layers 1 and 3 alone": ({"layers": (1, 3)}, ()),
    "dropout 0.1": ({"dropout": 0.1}, ()),
    "DoRA": ({"method": "dora"}, ()),
    "with norms trained whole": ({"train": "norm"}, ()),
    "with 16 rows of tokens": ({"tokens": {"embed": tuple(range(16))}}, ()),
}


def cost(name: str, layers: int) -> tuple[float, float, float]:
    """FLOPs, temporary bytes, and bytes of what trains with its optimizer state."""
    options, freeze = METHODS[name]
    if layers == 1 and "layers" in options:
        options = {"layers": (0,)}
    decoder, key = Decoder(dataclasses.replace(LLAMA, layers=layers)), jax.random.key(0)
    params = jax.eval_shape(lambda: decoder.init(key, jnp.zeros((1, 4), "int32"))["params"])

    def loss(params, tokens):
        scores = decoder.apply({"params": params}, tokens)
        labels = jnp.roll(tokens, -1, axis=1)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return each.sum(), each.size

    axes = jlora.trace_axes(loss, params, TOKENS)
    config = jlora.LoraConfig(**{"targets": "all-linear", "rank": RANK, **options})
    frozen, lora = jax.eval_shape(lambda p: jlora.split(p, config, key, axes=axes), params)
    adam = optax.adamw(1e-3)
    tx = optax.chain(adam, jlora.lora_plus(4)) if name == "LoRA+" else adam
    tx = jlora.optimizer(tx, freeze=freeze)
    state = jax.eval_shape(lambda lora, key: trainer.init(lora, tx, key), lora, key)
    trains = functools.partial(jlora.mask, freeze=freeze)
    step = trainer.make_step(jlora.lift(loss, strict=True), tx, trains=trains)
    compiled = step.lower(frozen, state, TOKENS).compile()  # type: ignore
    trained = jax.tree.leaves((state.lora, state.opt_state))
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in trained)
    memory = compiled.memory_analysis().temp_size_in_bytes  # type: ignore
    return compiled.cost_analysis()["flops"], memory, kept  # type: ignore


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_save(parser)
    given = parser.parse_args()
    costs = {}
    table = Table("", "FLOPs", "temporary bytes", "adapter and optimizer state, kB")
    for name in METHODS:
        flops, _, _ = cost(name, 1)
        _, memory, kept = cost(name, LLAMA.layers)
        costs[name] = flops, memory
        of_flops, of_memory = (a / b for a, b in zip(costs[name], costs["LoRA"], strict=True))
        table.row(name, f"{of_flops:.3f}", f"{of_memory:.3f}", f"{kept / 1e3:.0f}")
    flops, memory = costs["LoRA"]
    print(f"\nLoRA: {flops / 1e9:.2f} GFLOP a layer and head, {memory / 1e6:.1f} MB temporary; "
          f"JAX {jax.__version__}, {jax.default_backend()}")  # fmt: skip
    table.keep("method-costs", given.save, versions("jax", "flax"))


if __name__ == "__main__":
    main()
