"""Trained rows of a table: new or rare tokens of an embedding that otherwise stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jlora._lowrank import RANK, Dims, Factor, Factored, Product, add_deltas, wide
from jlora._node import Node, Shared
from jlora._peft_form import Rows
from jlora._registry import register


@register("rows")
@dataclasses.dataclass(frozen=True)
class TokenRows(Node):
    """What is added to the rows of some tokens: of low rank, with A one column for each token.

    PEFT's ``trainable_token_indices``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"embed": jnp.ones((9, 4)), "head": jnp.ones((4, 9))}
        >>> config = jlora.LoraConfig(targets="head", rank=2, tokens={"embed": (5, 8)})
        >>> frozen, lora = jlora.split(params, config, jax.random.key(0))
        >>> lora["embed"].tokens, lora["embed"].delta.shape
        ((5, 8), (2, 4))
    """

    delta: jax.Array  # (tokens, *the table's other dimensions), float32; zero at the start
    tokens: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # which rows
    table: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # the leaf's shape
    vocabulary: int = dataclasses.field(default=0, metadata={"static": True})  # its row dimension

    trainable: ClassVar[tuple[str, ...]] = ("delta",)

    @classmethod
    def from_table(cls, weight: Any, tokens: tuple[int, ...], vocabulary: int) -> TokenRows:
        """The node of these rows of a table, which changes nothing yet."""
        others = [size for dim, size in enumerate(weight.shape) if dim != vocabulary]
        delta = jnp.zeros((len(tokens), *others), wide(weight.dtype))
        return cls(delta, tokens, tuple(weight.shape), vocabulary)

    @property
    def rank(self) -> int:
        """As many as there are tokens."""
        return len(self.tokens)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table

    def dimensions(self) -> dict[str, Dims]:
        return {"delta": (RANK, *(d for d in range(len(self.table)) if d != self.vocabulary))}

    def part(self, dim: int, at: int) -> Node:
        table = tuple(1 if d == dim else size for d, size in enumerate(self.table))
        if dim != self.vocabulary:
            return dataclasses.replace(super().part(dim, at), table=table)  # type: ignore
        here = [row for row, token in enumerate(self.tokens) if token == at]
        rows = self.delta[jnp.array(here, int)]
        return dataclasses.replace(self, delta=rows, tokens=(0,) * len(here), table=table)

    def adapt(self, weight: jax.Array, shared: Shared) -> Factored:
        chosen = jax.nn.one_hot(
            jnp.array(self.tokens, int), self.table[self.vocabulary], axis=0, dtype=self.delta.dtype
        )
        rows = Factor(self.delta, self.dimensions()["delta"])
        return Factored((Product(Factor(chosen, (self.vocabulary, RANK)), rows),))

    def unmerged(self, weight: jax.Array, shared: Shared) -> jax.Array:
        [product] = self.adapt(weight, shared).products
        return add_deltas(weight, [-product.delta(weight.ndim)], None)

    def combined(self, others: Sequence[Node], weights: Sequence[Any], method: str) -> Node:
        nodes = [self, *(node for node in others if isinstance(node, TokenRows))]
        tokens = tuple(dict.fromkeys(token for node in nodes for token in node.tokens))
        delta = jnp.zeros((len(tokens), *self.delta.shape[1:]), self.delta.dtype)
        for weight, node in zip(weights, nodes, strict=True):
            rows = jnp.array([tokens.index(token) for token in node.tokens], int)
            delta = delta.at[rows].add(weight * node.delta)
        return dataclasses.replace(self, delta=delta, tokens=tokens)

    def peft_form(self) -> Rows:
        return Rows(self.delta, self.tokens, self.vocabulary)
