"""What differs between the layers of one scan: how far back each sees, which rotary base it has.

A model whose layers are alike gets nothing of this: no mask, no choice, no scanned input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora.models._net._config import DecoderConfig
from jlora.models._net._rotary import Rotary, rotary


class Shared(NamedTuple):
    """What all layers read."""

    mask: jax.Array  # (batch, length, slots), which slots a token sees
    rotary: Rotary | None
    local_rotary: Rotary | None = None  # of layers with a window, where theirs differs
    distance: jax.Array | None = None  # (length, slots), where layers' windows differ


class Own(NamedTuple):
    """What one layer reads; a first dimension of layers before the scan."""

    window: jax.Array | None = None
    local: jax.Array | None = None


def prepare(
    config: DecoderConfig, positions: jax.Array, mask: jax.Array, slot: Any, dtype: Any
) -> tuple[Shared, Own]:
    """The two for a pass over tokens at ``positions``, whose keys begin at ``slot``.

    Slots are contiguous, so that a distance in slots is one in tokens. A window as wide as all
    slots is none.
    """
    length, slots = mask.shape[-2:]
    windows = [slots if window is None else min(window, slots) for window in config.windows or ()]
    shared = Shared(mask, None), Own()
    return _with_windows(*_with_rotary(config, positions, dtype, *shared), windows, length, slot)


def _with_rotary(config, positions, dtype, shared: Shared, own: Own) -> tuple[Shared, Own]:
    if config.learned_positions:
        return shared, own
    kinds = [window is not None for window in config.windows or [None] * config.layers]
    if config.local_rope_theta is None or not any(kinds):
        return shared._replace(rotary=rotary(config, positions, dtype, local=False)), own
    local = rotary(config, positions, dtype, local=True)
    if all(kinds):
        return shared._replace(rotary=local), own
    plain = rotary(config, positions, dtype, local=False)
    return shared._replace(rotary=plain, local_rotary=local), own._replace(local=jnp.array(kinds))


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
    tables, mask = shared.rotary, shared.mask
    local, window, distance = own.local, own.window, shared.distance
    if local is not None:
        pick = lambda near, far: jnp.where(local, near, far)  # noqa: E731
        tables = jax.tree.map(pick, shared.local_rotary, shared.rotary)
    if window is not None and distance is not None:
        mask = mask & (distance < window)
    return tables, mask
