"""EVA: A starts as the directions in which the activations vary most, ranks go where they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora._config import LoraConfig
from jlora._from_data import _subspace
from jlora._from_data._sketch import Sketch
from jlora._lift import lift
from jlora._lora_dict import Lora
from jlora._methods import LoraWeight
from jlora._node import Node


def eva(
    fn: Callable[..., Any],
    frozen: Any,
    lora: Mapping[str, Node],
    batches: Sequence[Any],
    config: LoraConfig,
    key: jax.Array,
    *,
    rho: float = 2.0,
    iterations: int = 2,
) -> tuple[Any, Lora, LoraConfig]:
    """(frozen, lora, config) with A from the activations, and the ranks where they explain most.

    A holds the first right singular vectors of each weight's inputs over all batches; B stays zero,
    so the adapted function is the base function. The ranks of all leaves and layers together stay
    what they were: each goes to the direction with the next largest share of its own leaf's squared
    activations. The scaling of a leaf stays, whatever rank it gets.

    Args:
        fn: (params, batch) -> anything with floats in it, which depends on the adapted products.
        frozen: from `split`.
        lora: from `split`.
        batches: a few; each is read ``iterations + 1`` times.
        config: that ``lora`` was split with.
        key: a random key.
        rho: a leaf gets at most so many times its rank; 1 keeps every rank.
        iterations: of the subspace iteration; its error falls with each (Halko et al. 2011, arXiv
            0909.4061).

    Returns:
        frozen: as it was.
        lora: with other ranks, by leaf and by layer of a stack; without leaves of rank 0.
        config: that says so, for `jlora.checkpoint.save`.

    Raises:
        ValueError: when the adapter's start took weight out of ``frozen``, nothing of an adapted
            leaf's inputs is seen, there is no batch, rho is below 1, or no node of ``lora`` has an
            A and a B.

    Source: Paischer et al. 2024, "Parameter Efficient Fine-tuning via Explained Variance
    Adaptation", arXiv 2410.07170, algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> def model(params, x):
        ...     return x @ params["kernel"]
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> batches = [jax.random.normal(jax.random.key(1), (9, 7))]
        >>> started = jlora.eva(model, frozen, lora, batches, config, jax.random.key(2), rho=1)
        >>> frozen, lora, config = started
        >>> a = lora["kernel"].a  # its columns are orthonormal
        >>> a.shape, bool(jnp.allclose(a.T @ a, jnp.eye(2), atol=1e-5))
        ((7, 2), True)
    """
    if not rho >= 1:
        raise ValueError(f"rho is {rho}: expected a number of at least 1")
    nodes = _subspace.adapted(frozen, lora, config, "EVA")
    most, widths = {}, {}
    for path, node in nodes.items():
        _, inputs, outputs = _subspace.sizes(node)
        most[path] = min(int(rho * node.rank), inputs, outputs)
        widths[path] = min(most[path] + 8, inputs)
    directions = _subspace.start_directions(nodes, key, False, widths)

    @jax.jit
    def gradient(sketches, batch):
        return jax.grad(lambda sketches: _total(lift(fn)(frozen, sketches, batch)))(sketches)

    total: Any = None
    for step in range(iterations + 1):
        sketches = {path: Sketch.from_node(nodes[path], directions[path]) for path in nodes}
        total, _ = _subspace.summed(gradient, sketches, batches, "EVA")
        if unseen := [path for path in nodes if not float(total[path].energy.sum()) > 0]:
            raise ValueError(f"EVA saw no activations of {', '.join(unseen)}: exclude what fn "
                             "does not multiply, and look at jlora.explain")  # fmt: skip
        if step < iterations:
            directions = {path: _subspace.orthonormal(total[path].matrix()) for path in nodes}
    found = {path: _principal(directions[path], total[path]) for path in nodes}
    ranks = _share(nodes, {path: shares for path, (_, shares) in found.items()}, most)
    new = {p: _started(nodes[p], found[p][0], ranks[p]) for p in nodes if ranks[p].any()}
    kept = [path for path in lora if path in new or path not in nodes]
    return frozen, {p: new.get(p, lora[p]) for p in kept}, _with_ranks(config, nodes, ranks)


def _total(results: Any) -> jax.Array:
    """Something that every float of the results has a part in."""
    floats = [v for v in jax.tree.leaves(results) if jnp.issubdtype(v.dtype, jnp.floating)]
    return jnp.sum(jnp.stack([v.astype(jnp.float32).sum() for v in floats]))


def _principal(directions: jax.Array, total: Sketch) -> tuple[jax.Array, np.ndarray]:
    """The principal directions (*stack, inputs, width), and each one's share of the squares."""
    product = total.matrix()  # X'X Q
    small = jnp.swapaxes(directions, -1, -2) @ product
    values, vectors = jnp.linalg.eigh((small + jnp.swapaxes(small, -1, -2)) / 2)
    values, vectors = values[..., ::-1], vectors[..., ::-1]
    shares = np.asarray(values) / np.maximum(np.asarray(total.energy), 1e-30)
    return directions @ vectors, shares


def _share(
    nodes: Mapping[str, LoraWeight], shares: Mapping[str, np.ndarray], most: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The rank of each matrix, (*stack) int: all directions compete, the best of them win."""
    taken = {path: shares[path][..., : most[path]] for path in nodes}
    budget = sum(
        int(np.count_nonzero(np.broadcast_to(node.scaling, (*taken[path].shape[:-1], node.rank))))
        for path, node in nodes.items()
    )
    every = np.sort(np.concatenate([each.ravel() for each in taken.values()]))[::-1]
    least = every[min(budget, len(every)) - 1]
    return {path: (each >= least).sum(-1) for path, each in taken.items()}


def _started(node: LoraWeight, directions: jax.Array, ranks: np.ndarray) -> LoraWeight:
    """The node with these directions in A, zero in B, and its scaling where a rank is used."""
    rank = int(ranks.max())
    stack, outputs = len(node.axes.stack), node.b.shape[1 + len(node.axes.stack) :]
    a = directions[..., :rank].reshape(*node.a.shape[:-1], rank)
    each = np.max(np.broadcast_to(node.scaling, (*ranks.shape, node.rank)), axis=-1, keepdims=True)
    scaling = np.where(np.arange(rank) < ranks[..., None], each, np.float32(0))
    uniform = (scaling == scaling.flat[0]).all()
    return dataclasses.replace(
        node,
        a=a.astype(node.a.dtype),
        b=jnp.zeros((*node.b.shape[:stack], rank, *outputs), node.b.dtype),
        scaling=jnp.asarray(scaling.flat[0] if uniform else scaling, jnp.float32),
    )


def _with_ranks(
    config: LoraConfig, nodes: Mapping[str, LoraWeight], ranks: Mapping[str, np.ndarray]
) -> LoraConfig:
    """The configuration with each leaf's ranks (the highest over further stacks) and alphas."""
    rank_pattern: dict[str, Any] = {}
    alpha_pattern: dict[str, Any] = {}
    exclude = (config.exclude,) if isinstance(config.exclude, str) else config.exclude
    for path, node in nodes.items():
        if not ranks[path].any():
            exclude = (*exclude, config.pattern_of(path))
            continue
        scalings = np.broadcast_to(node.scaling, (*ranks[path].shape, node.rank))
        its_ranks, its_scalings = _by_layer(ranks[path]), _by_layer(scalings.max(-1))
        its_alphas = map(config.alpha_for, its_scalings, its_ranks)
        name = config.pattern_of(path)
        rank_pattern[name] = _one_or_each(its_ranks)
        alpha_pattern[name] = _one_or_each(tuple(its_alphas))
    return dataclasses.replace(
        config,
        exclude=exclude,
        rank_pattern=rank_pattern,  # each leaf has its own: no former pattern holds any more
        alpha_pattern=alpha_pattern,
    )


def _by_layer(values: np.ndarray) -> tuple[Any, ...]:
    """The highest of each layer, or the one value of a leaf without a stack."""
    layers = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
    return tuple(layers.max(-1).tolist())


def _one_or_each(values: tuple[Any, ...]) -> Any:
    return values[0] if len(set(values)) == 1 else values
