"""What differs between the layers of one scan: how far back each sees, how it is rotated.

A model whose layers are alike gets nothing of this: no mask, no choice, no scanned input.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora.models._net._borrowing import lenders
from jlora.models._net._config import DecoderConfig
from jlora.models._net._rotary import Rotary, rotary
from jlora.models._net._sparse_gate import Sparsity, sparsity_of

_PLAIN, _LOCAL, _NONE = "plain", "window's", "none"  # ways in which a layer is rotated


class Shared(NamedTuple):
    """What all layers read."""

    mask: jax.Array  # (batch, length, slots), which slots a token sees
    rotaries: tuple[Rotary, ...] = ()  # each way in which some layer is rotated
    distance: jax.Array | None = None  # (length, slots), where layers' windows or chunks differ
    positions: jax.Array | None = None  # (batch, length), where their chunks do
    sharper: jax.Array | None = None  # (batch, length, 1, 1), of queries that are not rotated
    real: jax.Array | None = None  # (batch, length), whether a token is none of the padding's
    # Keys and values of the layers that lend theirs: (lenders, batch, slots, kv_heads, head_dim).
    lent: tuple[jax.Array, jax.Array] | None = None


class Own(NamedTuple):
    """What one layer reads; a first dimension of layers before the scan."""

    window: jax.Array | None = None
    chunk: jax.Array | None = None
    rotated: tuple[jax.Array, ...] = ()  # whether in each of the ways but the first
    turns: jax.Array | None = None  # whether it is rotated, where that decides more
    lender: jax.Array | None = None  # which of the lenders it reads, where it borrows
    sparsity: Sparsity | None = None  # of its gate
    given: jax.Array | None = None  # (batch, length, width), what it gets of the tokens


class Layer(NamedTuple):
    """What is computed by in one layer."""

    rotary: Rotary | None
    mask: jax.Array  # (batch, length, slots), which slots a token sees
    turns: jax.Array | None  # () bool, whether it is rotated; None: all or none are
    real: jax.Array | None  # (batch, length), where there may be padding that matters
    sharper: jax.Array | None  # what queries are multiplied by, beside (batch, length, heads, 1)
    lent: tuple[jax.Array, jax.Array] | None  # keys and values of another layer
    sparsity: Sparsity | None
    given: jax.Array | None


def prepare(
    config: DecoderConfig,
    positions: jax.Array,
    lengths: jax.Array,
    mask: jax.Array,
    slot: Any,
    dtype: Any,
) -> tuple[Shared, Own]:
    """The two for a pass over tokens at ``positions``, whose keys begin at ``slot``.

    ``lengths`` are those of the tokens' texts, (batch, 1 or length).
    Slots are contiguous, so that a distance in slots is one in tokens. A window as wide as all
    slots is none, and so is a chunk.
    """
    length, slots = mask.shape[-2:]
    both = _with_rotary(config, positions, lengths, dtype, Shared(mask), Own())
    both = _with_turns(config, positions, *both)
    here = jnp.arange(length) + (0 if slot is None else slot)
    distance = here[:, None] - jnp.arange(slots)
    if config.linear is not None and slot is not None:  # padding does not see itself
        real = (mask & (distance == 0)).any(axis=-1)
        both = both[0]._replace(real=real), both[1]
    both = both[0], _with_lenders_and_sparsity(config, both[1])
    both = _with_windows(*both, _at_most(slots, config.windows), distance)
    return _with_chunks(*both, _at_most(slots, config.chunks), distance, positions)


def _with_lenders_and_sparsity(config: DecoderConfig, own: Own) -> Own:
    if config.borrowing is not None:
        its = lenders(config)
        order = sorted(set(its.values()))
        own = own._replace(
            lender=jnp.array([order.index(its.get(at, order[0])) for at in range(config.layers)])
        )
    if config.sparsity is not None and any(config.sparsity):
        own = own._replace(sparsity=sparsity_of(config.sparsity))
    return own


def _at_most(slots: int, each: tuple[int | None, ...] | None) -> list[int]:
    return [slots if tokens is None else min(tokens, slots) for tokens in each or ()]


def _with_turns(config, positions, shared: Shared, own: Own) -> tuple[Shared, Own]:
    rotated = config.rotated or (True,)
    sharpening = None if all(rotated) else config.sharpening
    if sharpening is not None:
        passed = jnp.floor((positions.astype(jnp.float32) + 1) / sharpening.every)
        sharper = 1 + sharpening.by * jnp.log1p(passed)
        shared = shared._replace(sharper=sharper[..., None, None])
    if (config.qk_rms or sharpening is not None) and len(set(rotated)) > 1:
        own = own._replace(turns=jnp.array(rotated))
    return shared, own


def _with_rotary(config, positions, lengths, dtype, shared: Shared, own: Own) -> tuple[Shared, Own]:
    kinds = _rotations(config)
    used = sorted(set(kinds))
    if used in ([], [_NONE]):
        return shared, own
    tables = {
        kind: rotary(config, positions, lengths, dtype, local=kind == _LOCAL)
        for kind in used
        if kind != _NONE
    }
    if _NONE in used:  # a turn by nothing
        cos, sin = next(iter(tables.values()))
        tables[_NONE] = jnp.ones_like(cos), jnp.zeros_like(sin)
    shared = shared._replace(rotaries=tuple(tables[kind] for kind in used))
    if len(used) == 1:
        return shared, own
    each = (jnp.array([kind == way for kind in kinds]) for way in used[1:])
    return shared, own._replace(rotated=tuple(each))


def _rotations(config: DecoderConfig) -> list[str]:
    """How each layer is rotated."""
    if config.learned_positions:
        return []
    windows = config.windows or (None,) * config.layers
    rotated = config.rotated or (True,) * config.layers
    another = config.local_rope_theta is not None
    return [
        _NONE if not turns else _LOCAL if another and window is not None else _PLAIN
        for window, turns in zip(windows, rotated, strict=True)
    ]


def _with_windows(shared: Shared, own: Own, windows, distance) -> tuple[Shared, Own]:
    slots = shared.mask.shape[-1]
    if all(window == slots for window in windows):
        return shared, own
    if len(set(windows)) == 1:
        return shared._replace(mask=shared.mask & (distance < windows[0])), own
    return shared._replace(distance=distance), own._replace(window=jnp.array(windows, jnp.int32))


def _with_chunks(shared: Shared, own: Own, chunks, distance, positions) -> tuple[Shared, Own]:
    slots = shared.mask.shape[-1]
    if all(chunk == slots for chunk in chunks):
        return shared, own
    if len(set(chunks)) == 1:
        return shared._replace(mask=shared.mask & _in_chunk(distance, positions, chunks[0])), own
    shared = shared._replace(distance=distance, positions=positions)
    return shared, own._replace(chunk=jnp.array(chunks, jnp.int32))


def _in_chunk(distance: jax.Array, positions: jax.Array, chunk: Any) -> jax.Array:
    """A token's chunk reaches as far back as its own place in it."""
    return distance <= (positions % chunk)[..., None]


def of_layer(shared: Shared, own: Own) -> Layer:
    """What one layer is computed by."""
    mask, sharper, distance = shared.mask, shared.sharper, shared.distance
    tables, *others = shared.rotaries or (None,)
    for its, table in zip(own.rotated, others, strict=True):
        tables = jax.tree.map(functools.partial(jnp.where, its), table, tables)
    if own.window is not None and distance is not None:
        mask = mask & (distance < own.window)
    if own.chunk is not None and distance is not None and shared.positions is not None:
        mask = mask & _in_chunk(distance, shared.positions, own.chunk)
    if own.turns is not None and sharper is not None:
        sharper = jnp.where(own.turns, 1.0, sharper)
    lent = shared.lent
    if lent is not None and own.lender is not None:
        one = lambda each: jax.lax.dynamic_index_in_dim(each, own.lender, keepdims=False)  # noqa: E731
        lent = one(lent[0]), one(lent[1])
    return Layer(tables, mask, own.turns, shared.real, sharper, lent, own.sparsity, own.given)
