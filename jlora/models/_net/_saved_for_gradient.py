"""What a layer keeps for its gradient: the results of its products, as all else is cheap.

Norms, rotations, the scores of attention and activations are computed again: for SmolLM2 2 % more
FLOPs for half of the memory (`python -m benchmarks.kept`).
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

_PRODUCT = "product"


def product(x: jax.Array) -> jax.Array:
    """The result of a product with a weight, named so that it is kept."""
    return checkpoint_name(x, _PRODUCT)


PRODUCTS = jax.checkpoint_policies.save_only_these_names(_PRODUCT)
