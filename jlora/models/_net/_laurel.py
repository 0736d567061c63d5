"""A thin product of the layer's normed input, normed again, that is added beside attention.

Menghani et al. 2024, "LAuReL: Learned Augmented Residual Layer", arXiv 2411.07501.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from jlora.models._net._config import DecoderConfig
from jlora.models._net._norms import norm
from jlora.models._net._remat import product


class Laurel(nn.Module):
    """x + norm(right(left(x)))."""

    config: DecoderConfig
    rank: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        thin = product(nn.Dense(self.rank, use_bias=False, name="left_proj")(x))
        wide = product(nn.Dense(self.config.width, use_bias=False, name="right_proj")(thin))
        return x + norm(self.config, "norm")(wide)
