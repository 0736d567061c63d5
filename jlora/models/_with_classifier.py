"""A model with a fresh head for classification, as it is before it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from jlora._config import LoraConfig
from jlora._paths import key_for
from jlora.models._families import family_of
from jlora.models._families._labels import HEAD, relabelled
from jlora.models._files._stacking import expected_shapes
from jlora.models._layout import laid_out
from jlora.models._text_model import TextModel

_SPREAD = 0.02  # of a fresh head's weights, as transformers draws them


def with_classifier(model: Any, labels: Sequence[str], key: jax.Array) -> Any:
    """The model with a fresh head that scores these labels; the head that is there goes.

    So does transformers' ``AutoModelForSequenceClassification.from_pretrained(...,
    num_labels=...)``: weights are normal with a deviation of 0.02, biases zero. An encoder
    whose head reads the pooler gets a fresh one where its file had none, and one that the head does
    not read goes. A decoder's head reads the last token, and that over its vocabulary goes. What is
    fresh is to train:
    ``LoraConfig(train=models.fresh_leaves(base, model))``.

    Args:
        model: an encoder or a decoder, or an `outline` of one.
        labels: the labels' names, in the order of the scores.
        key: random key; each weight's is folded from its path.

    Raises:
        ValueError: when there are no labels or one twice, or transformers has no such class of the
            model's family.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.EncoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, mlp_width=8, max_length=64,
        ... )
        >>> init = jax.jit(models.Encoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.EncoderModel(params, config, tokenizer=None, name="tiny")
        >>> model = models.with_classifier(model, ("no", "yes", "maybe"), jax.random.key(1))
        >>> model.apply(model.params, jnp.array([[1, 2]])).shape
        (1, 3)
    """
    if not labels or isinstance(labels, str):
        raise ValueError(f"labels are {labels!r}: expected the name of at least one")
    family = family_of(model.config.family, model.name)
    config = relabelled(model.config, tuple(labels), family, model.name)
    paths: dict[str, Any] = dict(flax.traverse_util.flatten_dict(model.params, sep="/"))
    shapes = expected_shapes(config)
    params = {
        path: paths[path]
        if path in paths and not path.startswith(HEAD)
        else _fresh(path, shape, key, paths["embed/embedding"])
        for path, shape in shapes.items()
    }
    params = laid_out(model.layout, config, flax.traverse_util.unflatten_dict(params, sep="/"))
    return dataclasses.replace(model, params=params, config=config)


def fresh_leaves(base: TextModel, model: TextModel) -> tuple[str, ...]:
    """What `with_classifier` made anew of the model, as patterns for ``LoraConfig(train=...)``.

    Args:
        base: the model as it was.
        model: what `with_classifier` gave.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> base = models.Model(params, config, tokenizer=None, name="tiny")
        >>> model = models.with_classifier(base, ("no", "yes"), jax.random.key(1))
        >>> models.fresh_leaves(base, model)
        ('^classifier/kernel$',)
    """
    old, new = (flax.traverse_util.flatten_dict(m.params, sep="/") for m in (base, model))
    fresh = [path for path in new if path.startswith(HEAD) or path not in old]
    return tuple(LoraConfig.pattern_of(path) for path in fresh)


def _fresh(path: str, shape: tuple[int, ...], key: jax.Array, like: Any) -> Any:
    if isinstance(like, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, like.dtype)
    if path.endswith("/bias"):
        return jnp.zeros(shape, like.dtype)
    return _SPREAD * jax.random.normal(key_for(key, path), shape, like.dtype)
