"""What differs between the layers of one scan: how far back each sees, how it is rotated.

A model whose layers are alike gets nothing of this: no mask, no choice, no scanned input.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._rotary import Rotary, rotary

_PLAIN, _LOCAL, _NONE = "plain", "window's", "none"  # ways in which a layer is rotated


class Shared(NamedTuple):
    """What all layers read."""

    mask: jax.Array  # (batch, length, slots), which slots a token sees
    rotaries: tuple[Rotary, ...] = ()  # each way in which some layer is rotated
    distance: jax.Array | None = None  # (length, slots), where layers' windows differ


class Own(NamedTuple):
    """What one layer reads; a first dimension of layers before the scan."""

    window: jax.Array | None = None
    rotated: tuple[jax.Array, ...] = ()  # whether in each of the ways but the first


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
    slots is none.
    """
    length, slots = mask.shape[-2:]
    windows = [slots if window is None else min(window, slots) for window in config.windows or ()]
    shared = Shared(mask), Own()
    shared = _with_rotary(config, positions, lengths, dtype, *shared)
    return _with_windows(*shared, windows, length, slot)


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


def _with_windows(shared: Shared, own: Own, windows, length, slot) -> tuple[Shared, Own]:
    slots = shared.mask.shape[-1]
    if all(window == slots for window in windows):
        return shared, own
    here = jnp.arange(length) + (0 if slot is None else slot)
    distance = here[:, None] - jnp.arange(slots)
    if len(set(windows)) == 1:
        return shared._replace(mask=shared.mask & (distance < windows[0])), own
    return shared._replace(distance=distance), own._replace(window=jnp.array(windows, jnp.int32))


def of_layer(shared: Shared, own: Own) -> tuple[Rotary | None, jax.Array]:
    """One layer's rotary tables and mask."""
    mask, window, distance = shared.mask, own.window, shared.distance
    tables, *others = shared.rotaries or (None,)
    for its, table in zip(own.rotated, others, strict=True):
        tables = jax.tree.map(functools.partial(jnp.where, its), table, tables)
    if window is not None and distance is not None:
        mask = mask & (distance < window)
    return tables, mask
