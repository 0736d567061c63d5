"""What a layer keeps for its gradient, by name; what it does not keep is computed again.

Norms, rotations, the scores of attention and activations are cheap beside products with weights:
without them a third of the memory is left, for 2 % more FLOPs (`python -m benchmarks.policies`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

_PRODUCT = "product"

_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(_PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMATS = tuple(_POLICIES)


def product(x: jax.Array) -> jax.Array:
    """The result of a product with a weight, named so that it is kept."""
    return checkpoint_name(x, _PRODUCT)


def rematerialised(layer: Any, remat: str) -> Any:
    """The module class of a layer for `flax.linen.scan`, with what it keeps for its gradient.

    Args:
        layer: the class.
        remat: ``"none"`` keeps everything, ``"products"`` the results of products with weights,
            ``"full"`` the layer's inputs alone.

    Raises:
        ValueError: when ``remat`` is none of them.
    """
    if remat not in REMATS:
        raise ValueError(f"remat is {remat!r}: expected one of {', '.join(REMATS)}")
    # prevent_cse: a scan already keeps the two passes apart
    return nn.remat(layer, prevent_cse=False, policy=_POLICIES[remat])
