"""What a LoRA train step costs with jax-lorax, beside by hand: the compiler's own figures.

lorax runs on no current JAX, so this script imports nothing of jlora and needs an environment of
its own, on Python 3.11:

    pip install jax-lorax==0.3.1 qax==0.3.1 jax==0.4.26 jaxlib==0.4.26 optax "plum-dispatch<2.9"
    python benchmarks/against_lorax.py

JAX 0.4.26 is the newest on which it works: from 0.4.27 on the first `jnp` product beside an adapter
raises, and with plum-dispatch 2.10 it does not import. Its own bounds allow both, and qax 0.4.1, a
newer backend: run with `qax==0.4.1` too, the last lines tell them apart.

The model is that of `benchmarks/costs` without biases: a transformer, here of 4 layers, rank 8 on
every linear layer. A step is loss, gradient and AdamW, compiled and not run, but for the check at
the end. This JAX's own report of memory on the CPU is all zeros, so memory is read from XLA's
buffer assignment; and it counts no FLOPs in oneDNN's products, so XLA's own stand in for them.
"""

import argparse
import functools
import importlib.metadata
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lorax
import optax
from _shared.table import Table, add_save, versions
from jax import lax

LAYERS, WIDTH, HEADS, OUTPUTS, RANK, ALPHA = 4, 256, 4, 512, 8, 16.0
SHAPES = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH)) | {
    "up": (WIDTH, 4 * WIDTH),
    "down": (4 * WIDTH, WIDTH),
}
TOKENS = jax.ShapeDtypeStruct((4, 128), "int32")
Product = Callable[[jax.Array, Any], jax.Array]


def loss(params: Any, tokens: jax.Array, product: Product = jnp.matmul) -> jax.Array:
    """A loss that needs no labels; ``product(x, w)`` multiplies by a linear layer's weight."""
    x = params["embed"][tokens]
    for layer in params["layers"]:
        normed = norm(x)
        parts = [product(normed, layer[name]) for name in ("query", "key", "value")]
        query, key, value = (p.reshape(*x.shape[:2], HEADS, -1) for p in parts)
        scores = jnp.einsum("bthd,bshd->bhts", query, key) * (WIDTH // HEADS) ** -0.5
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)
        x = x + product(mixed.reshape(x.shape), layer["out"])
        x = x + product(jax.nn.gelu(product(norm(x), layer["up"])), layer["down"])
    return jnp.mean((norm(x) @ params["head"]) ** 2)


def norm(x: jax.Array) -> jax.Array:
    """Zero mean, unit variance."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)


def init(key: jax.Array) -> dict[str, Any]:
    """The parameters."""
    draw = jax.nn.initializers.lecun_normal()
    ends, *keys = jax.random.split(key, 1 + LAYERS)
    return {
        "embed": jax.random.normal(ends, (OUTPUTS, WIDTH)),
        "head": draw(ends, (WIDTH, OUTPUTS)),
        "layers": [
            {name: draw(jax.random.fold_in(k, i), SHAPES[name]) for i, name in enumerate(SHAPES)}
            for k in keys
        ],
    }


class Pair(NamedTuple):
    """A (in, rank) and B (rank, out)."""

    a: Any
    b: Any


class Adapted(NamedTuple):
    """A weight and its pair."""

    w: Any
    pair: Pair


def joined(pairs: Any, params: Any) -> Any:
    """The parameters with an `Adapted` for each linear layer's weight."""
    layers = [
        {name: Adapted(w, pair[name]) for name, w in layer.items()}
        for layer, pair in zip(params["layers"], pairs, strict=True)
    ]
    return {**params, "layers": layers}


def by_hand(x: jax.Array, w: Adapted) -> jax.Array:
    """X W + (x A) s B."""
    return x @ w.w + (x @ w.pair.a) @ (ALPHA / RANK * w.pair.b)


def merged(x: jax.Array, w: Adapted) -> jax.Array:
    """X (W + s A B)."""
    return x @ (w.w + ALPHA / RANK * w.pair.a @ w.pair.b)


class Way(NamedTuple):
    """A loss of what trains and of what does not, and the optimizer."""

    trained: Any
    frozen: Any
    loss: Callable[[Any, Any, Any], Any]
    tx: optax.GradientTransformation


def ways(params: Any) -> dict[str, Way]:
    """Every way to write the step."""
    adam = optax.adamw(1e-3)
    layer = {
        name: Pair(jnp.zeros((i, RANK)), jnp.zeros((RANK, o))) for name, (i, o) in SHAPES.items()
    }
    pairs = [layer] * LAYERS
    written = {
        name: Way(pairs, params, lambda t, f, x, p=product: loss(joined(t, f), x, p), adam)
        for name, product in {"by hand": by_hand, "W + A B under the gradient": merged}.items()
    }
    spec = jax.tree_util.tree_map_with_path(
        lambda path, _: RANK if "layers" in str(path) else lorax.LORA_FREEZE, params
    )
    adapted = lorax.init_lora(params, spec, jax.random.PRNGKey(0), alpha=ALPHA)
    lifted = lorax.lora(loss)

    def inside(pairs, frozen, x):
        """The same with W never under the gradient."""
        nodes = jax.tree_util.tree_map(
            lambda w: lorax.LoraWeight(w=w.w, b=w.pair.a, a=w.pair.b, alpha=ALPHA),
            joined(pairs, frozen)["layers"],
            is_leaf=lambda leaf: isinstance(leaf, Adapted),
        )
        return lifted({**frozen, "layers": nodes}, x)

    return {
        "everything": Way(params, (), lambda t, _, x: loss(t, x), adam),
        **written,
        "lorax, the gradient of A and B alone": Way(pairs, params, inside, adam),
        "lorax, its optimizer": Way(
            adapted, (), lambda t, _, x: lifted(t, x), lorax.wrap_optimizer(adam, spec)
        ),
    }


def step_of(way: Way) -> Callable:
    """Loss, gradient and update, jitted."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained, state, frozen, x):
        value, grads = jax.value_and_grad(way.loss)(trained, frozen, x)
        updates, state = way.tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    return step


def cost(way: Way, dump: Path) -> tuple[float, ...]:
    """FLOPs, bytes accessed, temporary bytes, argument bytes; XLA writes its files to ``dump``."""
    state = jax.eval_shape(way.tx.init, way.trained)
    compiled: Any = step_of(way).lower(way.trained, state, way.frozen, TOKENS).compile()
    [figures] = compiled.cost_analysis()
    files = dump.glob("*jit_step*buffer-assignment.txt")
    buffers = max(files, key=lambda file: file.stat().st_mtime_ns).read_text()

    def total(kind: str) -> int:
        return sum(map(int, re.findall(rf"^allocation \d+: size (\d+),.*{kind}", buffers, re.M)))

    return (
        figures["flops"],
        figures["bytes accessed"],
        total("preallocated-temp"),
        total("parameter"),
    )


def movement(way: Way) -> tuple[float, float]:
    """How far a step with lorax's optimizer moves W, and B, at most."""
    start = jax.tree_util.tree_map(jnp.copy, way.trained)
    tokens = jax.random.randint(jax.random.PRNGKey(1), TOKENS.shape, 0, OUTPUTS)
    ends, _, _ = step_of(way)(way.trained, way.tx.init(way.trained), way.frozen, tokens)
    moved = {
        field: max(
            float(jnp.abs(getattr(b[n], field) - getattr(a[n], field)).max())
            for a, b in zip(start["layers"], ends["layers"], strict=True)
            for n in SHAPES
        )
        for field in ("w", "b", "a")
    }
    return moved["w"], max(moved["a"], moved["b"])


def main() -> None:
    """The table in Markdown, each figure as a multiple of the hand-written step's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_save(parser)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as dump:
        # read when JAX computes for the first time
        os.environ["XLA_FLAGS"] = (
            f"--xla_dump_to={dump} --xla_dump_hlo_module_re=jit_step "
            "--xla_disable_hlo_passes=onednn-matmul-rewriter"
        )
        every = ways(init(jax.random.PRNGKey(0)))
        costs = {name: cost(way, Path(dump)) for name, way in every.items()}
    hand = costs.pop("by hand")
    table = Table("", "FLOPs", "bytes read and written", "temporary bytes", "arguments")
    cells = [f"{hand[0] / 1e9:.3f} G", *(f"{size / 1e6:.2f} MB" for size in hand[1:])]
    table.row(f"**transformer, {LAYERS} layers**, by hand", *cells)
    for name, its in costs.items():
        table.row(name, *(f"{a / b:.3f}" for a, b in zip(its, hand, strict=True)))
    known = versions("jax", "jax-lorax", "qax", "optax", "plum-dispatch")
    print(f"\n{jax.default_backend()}; {known}; rank {RANK}")
    table.keep(f"against-lorax-qax-{importlib.metadata.version('qax')}", given.save, known)
    w, pair = movement(every["lorax, its optimizer"])
    print(f"one step of lorax's optimizer moves W by {w:.1e} and A or B by {pair:.1e} at most")


if __name__ == "__main__":
    main()
