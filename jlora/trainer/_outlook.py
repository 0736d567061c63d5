"""What a step will need, known before it runs: bytes and FLOPs, from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jlora import _words
from jlora.trainer._flops import flops
from jlora.trainer._state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a compiled program needs, by its compiler's own account; ``str`` gives it as lines.

    Example:
        >>> import jlora
        >>> its = jlora.trainer.Outlook(
        ...     frozen=3 << 30, adapter=1 << 20, optimizer=2 << 20, inputs=512, temporary=1 << 29,
        ...     peak=3 << 30, flops=6 * 10**12, tokens=1024,
        ... )
        >>> print(its)
        frozen       3.00 GiB
        adapter      1.00 MiB
        optimizer    2.00 MiB
        inputs          512 B
        temporary  512.00 MiB
        peak         3.00 GiB
        FLOPs      6 TFLOP, 5.86 GFLOP a token
        tokens     1,024
    """

    frozen: int  # bytes of what does not train
    adapter: int  # bytes
    optimizer: int  # bytes of its state
    inputs: int  # bytes of all other arguments
    temporary: int  # bytes of what lies between them and the results
    peak: int  # bytes, all of these and the results: at once there are no more
    flops: int  # of all products, loops in full
    tokens: int | None = None  # of one call

    def __str__(self) -> str:
        names = ("frozen", "adapter", "optimizer", "inputs", "temporary", "peak")
        lines = [f"{name:9}  {_bytes(getattr(self, name)):>10}" for name in names]
        work = _words.amount(self.flops, "FLOP")
        if self.tokens:
            work += f", {_words.amount(self.flops / self.tokens, 'FLOP')} a token"
        lines.append(f"{'FLOPs':9}  {work}")
        if self.tokens is not None:
            lines.append(f"{'tokens':9}  {self.tokens:,}")
        return "\n".join(lines)


def outlook(
    fn: jax.stages.Wrapped, frozen: Any, trained: Any, *inputs: Any, tokens: int | None = None
) -> Outlook:
    """What one call ``fn(frozen, trained, *inputs)`` needs: it is compiled, and does not run.

    For a step as for the longest evaluation: what a run needs is the larger of both.

    Args:
        fn: a jitted function: from `make_step`, or a lifted one under `jax.jit`.
        frozen: the frozen tree. Here and below `jax.ShapeDtypeStruct` leaves will do, as
            `jax.eval_shape` gives them.
        trained: a `TrainState`, or the adapter alone.
        inputs: what else the function takes: a batch.
        tokens: how many tokens it is of, for the FLOPs of one.

    Returns:
        the `Outlook`. Its peak is of one device, and leaves out what else is there: other programs'
        arguments, and what the device itself takes.

    Raises:
        jax.errors.JaxRuntimeError: of compilers that refuse what does not fit, see `ran_out`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> params = {"kernel": jax.ShapeDtypeStruct((7, 5), jnp.float32)}
        >>> split = lambda params: jlora.split(params, config, jax.random.key(0))
        >>> frozen, lora = jax.eval_shape(split, params)
        >>> tx = jlora.optimizer(optax.adam(0.1))
        >>> init = lambda lora: jlora.trainer.init(lora, tx, jax.random.key(1))
        >>> state = jax.eval_shape(init, lora)
        >>> loss = lambda params, x: (((x @ params["kernel"]) ** 2).sum(), x.shape[0])
        >>> step = jlora.trainer.make_step(jlora.lift(loss), tx)
        >>> batch = jax.ShapeDtypeStruct((4, 7), jnp.float32)
        >>> its = jlora.trainer.outlook(step, frozen, state, batch)
        >>> its.frozen, its.inputs  # 7 * 5 and 4 * 7 numbers of 4 bytes
        (140, 112)
    """
    traced = fn.trace(frozen, trained, *inputs)
    memory: Any = traced.lower().compile().memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    adapter, optimizer = trained, ()
    if isinstance(trained, TrainState):
        adapter, optimizer = trained.lora, trained.opt_state
    return Outlook(
        frozen=_size(frozen),
        adapter=_size(adapter),
        optimizer=_size(optimizer),
        inputs=_size(inputs),
        temporary=memory.temp_size_in_bytes,
        peak=kept + memory.temp_size_in_bytes,  # CPU's compiler counts no temporaries in its own
        flops=flops(traced.jaxpr.jaxpr),
        tokens=tokens,
    )


def _size(tree: Any) -> int:
    """Bytes on one device."""

    def of_leaf(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize

    return sum(map(of_leaf, jax.tree.leaves(tree)))


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
