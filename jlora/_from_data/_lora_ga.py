"""LoRA-GA: the first step of A and B goes where full fine-tuning's first step would go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jlora._config import LoraConfig
from jlora._from_data import _subspace
from jlora._frozen_beside import without
from jlora._lift import lift
from jlora._lora_dict import Lora
from jlora._methods import LoraWeight
from jlora._node import Node


def lora_ga(
    loss: Callable[..., jax.Array],
    frozen: Any,
    lora: Mapping[str, Node],
    batches: Sequence[Any],
    config: LoraConfig,
    key: jax.Array,
    *,
    gamma: float = 16.0,
    iterations: int = 2,
) -> tuple[Any, Lora, LoraConfig]:
    """(frozen, lora, config) with A and B from the singular vectors of the loss's gradient.

    With the gradient U S V' of a weight, averaged over the batches: A is the first ``rank`` columns
    of U, B the next ``rank`` rows of V', each times ``outputs^(1/4) / sqrt(gamma)``. ``scaling *
    A B`` is taken out of the frozen weight, so the adapted function is the base function; `rebase`
    turns the trained adapter into one of the original weights. The gradient itself is never formed:
    its products with a few directions are gradients of A and B.

    Args:
        loss: (params, batch) -> scalar.
        frozen: from `split`, with a start that moves no weight.
        lora: from `split`.
        batches: a few; each is read ``2 * iterations + 2`` times.
        config: that ``lora`` was split with.
        key: a random key.
        gamma: divides A and B by its root.
        iterations: of the subspace iteration (Halko et al. 2011, arXiv 0909.4061).

    Returns:
        frozen: the weights without what A B takes out of them.
        lora: with other A and B.
        config: with ``init="lora_ga"``, by which `jlora.peft.save` knows of the former.

    Raises:
        ValueError: when the adapter's start took weight out of ``frozen``, there is no batch, a
            leaf's gradient is zero, its matrix is narrower than twice the rank, no node of
            ``lora`` has an A and a B, or the method does not take the start.

    Source: Wang et al. 2024, "LoRA-GA", arXiv 2407.05000, algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> def loss(params, x):
        ...     return jnp.square(x @ params["kernel"] - 1).mean()
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> batches = [jax.random.normal(jax.random.key(1), (9, 7))]
        >>> started = jlora.lora_ga(loss, frozen, lora, batches, config, jax.random.key(2))
        >>> frozen, lora, config = started
        >>> merged = jlora.merge(frozen, lora)  # the adapted function is the base function
        >>> config.init, bool(jnp.allclose(merged["kernel"], 1, atol=1e-5))
        ('lora_ga', True)
    """
    nodes = _subspace.adapted(frozen, lora, config, "LoRA-GA")
    # it says that weight was taken out of the frozen tree
    config = dataclasses.replace(config, init="lora_ga")
    gradient = jax.jit(jax.grad(lambda lora, batch: lift(loss)(frozen, lora, batch)))
    widths = {}
    for path, node in nodes.items():
        _, inputs, outputs = _subspace.sizes(node)
        if 2 * node.rank > min(inputs, outputs):
            raise ValueError(f"LoRA-GA takes 2 * {node.rank} directions of {path}, a matrix of "
                             f"{inputs} x {outputs}: expected a smaller rank")  # fmt: skip
        widths[path] = min(2 * node.rank + 8, inputs, outputs)
    right = _subspace.start_directions(nodes, key, True, widths)
    left, rows = {}, {}
    for _ in range(iterations + 1):
        probes = {path: _probe(nodes[path], b=right[path]) for path in nodes}
        total, count = _subspace.summed(gradient, probes, batches, "LoRA-GA")
        left = {p: _subspace.orthonormal(_columns(total[p])) for p in nodes}
        probes = {path: _probe(nodes[path], a=left[path]) for path in nodes}
        total, count = _subspace.summed(gradient, probes, batches, "LoRA-GA")
        rows = {p: _rows(total[p]) / count for p in nodes}  # Q' G
        right = {p: _subspace.orthonormal(jnp.swapaxes(rows[p], -1, -2)) for p in nodes}
    started = {}
    for path, node in nodes.items():
        if not float(jnp.abs(rows[path]).max()) > 0:
            raise ValueError(f"LoRA-GA: the loss has no gradient with respect to {path}")
        started[path] = _started(node, left[path], rows[path], gamma)
    return without(frozen, started), {**lora, **started}, config


def _probe(node: LoraWeight, *, a: Any = None, b: Any = None) -> LoraWeight:
    """A node whose delta is zero and whose gradient is that of W times ``a`` or ``b``."""
    width = (b if a is None else a).shape[-1]
    stack = node.a.shape[: len(node.axes.stack)]
    outputs = node.b.shape[1 + len(stack) :]
    if a is None:
        a = jnp.zeros((*node.a.shape[:-1], width))
    b = jnp.zeros((*stack, width, *outputs)) if b is None else jnp.swapaxes(b, -1, -2)
    return LoraWeight(
        a=a.reshape(*node.a.shape[:-1], width),
        b=b.reshape(*stack, width, *outputs),
        scaling=jnp.float32(1),
        axes=node.axes,
    )


def _columns(node: LoraWeight) -> jax.Array:
    """A as (*stack, inputs, width)."""
    stack = node.a.shape[: len(node.axes.stack)]
    return node.a.reshape(*stack, -1, node.rank)


def _rows(node: LoraWeight) -> jax.Array:
    """B as (*stack, width, outputs)."""
    stack = node.a.shape[: len(node.axes.stack)]
    return node.b.reshape(*stack, node.rank, -1)


def _started(node: LoraWeight, left: jax.Array, rows: jax.Array, gamma: float) -> LoraWeight:
    """A and B from the decomposition of Q (Q' G)."""
    u, _, vt = jnp.linalg.svd(rows, full_matrices=False)
    size = vt.shape[-1] ** 0.25 / gamma**0.5
    a = (left @ u)[..., :, : node.rank] * size
    b = vt[..., node.rank : 2 * node.rank, :] * size
    return dataclasses.replace(
        node,
        a=a.reshape(node.a.shape).astype(node.a.dtype),
        b=b.reshape(node.b.shape).astype(node.b.dtype),
    )
