"""What to adapt and how strongly: the one configuration that `split` reads."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which leaves get a low-rank adapter, of which rank, scaling and dtype.

    Attributes:
        targets: a regular expression, searched in each leaf's path (``layers/attn/q_proj/kernel``),
            or several of them.
        rank: columns of A and rows of B, at least 1.
        alpha: the delta is multiplied by ``alpha / rank``.
        exclude: leaves that ``targets`` finds and that shall stay as they are, in the same form.
        dtype: of A and B, by name. float32 also over bfloat16 weights: small updates would
            vanish in bfloat16 factors.

    Raises:
        ValueError: when a value is out of its range, all of them named at once.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
    arXiv 2106.09685, section 4.1.
    """

    targets: str | tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    exclude: str | tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self):
        for field in ("targets", "exclude"):
            value = getattr(self, field)
            if isinstance(value, list):  # as JSON gives them back
                object.__setattr__(self, field, tuple(value))
        problems = []
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            problems.append(f"rank is {self.rank!r}: expected a whole number of at least 1")
        if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < math.inf:
            problems.append(f"alpha is {self.alpha!r}: expected a number above 0")
        for field in ("targets", "exclude"):
            value = getattr(self, field)
            patterns = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(pattern, str) for pattern in patterns):
                problems.append(f"{field} is {value!r}: expected a pattern or several, as text")
        if not self.targets or self.targets == ("",):
            problems.append("targets is empty: expected a pattern such as 'q_proj|v_proj'")
        try:
            floating = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            problems.append(f"dtype is {self.dtype!r}: expected a float type such as 'float32'")
        if problems:
            raise ValueError("LoraConfig: " + "; ".join(problems))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    @property
    def scaling(self) -> float:
        """What the product A B is multiplied by: ``alpha / rank``."""
        return self.alpha / self.rank
