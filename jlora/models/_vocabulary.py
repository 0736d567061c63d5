"""A model whose table of tokens is another than its file's: longer, or apart from its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora._frozen_leaf import is_frozen_leaf, plain
from jlora.models._layout import laid_out
from jlora.models._net._config import DecoderConfig
from jlora.models._net._encoder_config import Config

EMBED, HEAD = "embed/embedding", "head/kernel"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What is added to a model's vocabulary.

    Args:
        rows: (more, width) of the embedding and of an own head, by path: further tokens' vectors.
        untied: the head is no longer the embedding, and begins as it.

    Example:
        >>> import numpy as np
        >>> from jlora import models
        >>> more = models.Vocabulary({"embed/embedding": np.ones((2, 8), "float32")})
        >>> more.more
        2
    """

    rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    untied: bool = False

    @property
    def more(self) -> int:
        """How many tokens are added."""
        return max((len(rows) for rows in self.rows.values()), default=0)

    def config(self, config: Config) -> Any:
        """The configuration of the model that comes of it.

        Raises:
            ValueError: when rows are missing, or of another width than the model.
        """
        decodes = isinstance(config, DecoderConfig)
        tied = config.tied and not self.untied
        wanted = {EMBED: (self.more, config.width)}
        wanted |= {HEAD: (self.more, config.width)} if decodes and not tied else {}
        found = {path: tuple(rows.shape) for path, rows in self.rows.items()}
        if self.more and found != wanted:
            raise ValueError(f"the rows of further tokens are {found}: expected {wanted}")
        head = {"tied": tied} if decodes else {}
        return dataclasses.replace(config, vocabulary=config.vocabulary + self.more, **head)


def with_vocabulary(model: Any, vocabulary: Vocabulary) -> Any:
    """The `Model` with further tokens, and with a head of its own where it shall be untied.

    Args:
        model: a `Model`, or an `outline` of one.
        vocabulary: what to add, as `jlora.peft.vocabulary` finds it.

    Raises:
        ValueError: when rows are missing, or of another width than the model.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64, tied=True,
        ... )
        >>> params = {"embed": {"embedding": jnp.zeros((3, 8))}}  # of a model, all the rest beside
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> more = models.Vocabulary({"embed/embedding": np.ones((2, 8), "float32")})
        >>> models.with_vocabulary(model, more).params["embed"]["embedding"].shape
        (5, 8)
    """
    config = vocabulary.config(model.config)
    params = {**model.params}
    if vocabulary.untied and model.config.tied:
        params["head"] = {"kernel": _turned(_plain(params["embed"]["embedding"]))}
    for path, rows in vocabulary.rows.items():
        part, name = path.split("/")
        table = _longer(_plain(params[part][name]), rows, path == HEAD)
        params[part] = {**params[part], name: table}
    params = laid_out(model.layout, config, params)
    return dataclasses.replace(model, params=params, config=config)


def _plain(table: Any) -> Any:
    """A table as an array, or its shape, however it is kept."""
    if not is_frozen_leaf(table):
        return table
    of_shapes = isinstance(jax.tree.leaves(table)[0], jax.ShapeDtypeStruct)
    return jax.eval_shape(plain, table) if of_shapes else plain(table)


def _turned(table: Any) -> Any:
    if isinstance(table, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(table.shape[::-1], table.dtype)
    return table.T


def _longer(table: Any, rows: np.ndarray, head: bool) -> Any:
    """The table with the rows behind its own; a head's tokens stand in its columns."""
    axis = 1 if head else 0
    if isinstance(table, jax.ShapeDtypeStruct):
        shape = tuple(n + len(rows) * (at == axis) for at, n in enumerate(table.shape))
        return jax.ShapeDtypeStruct(shape, table.dtype)
    rows = rows.T if head else rows
    return jnp.concatenate([table, jnp.asarray(rows, table.dtype)], axis)
