"""What a head for classification learns from, what it says of texts, and how good that is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jlora._cross_entropy import cross_entropy
from jlora._lift import lift
from jlora.models._answers._generate import bucket
from jlora.models._encoder_model import made
from jlora.models._layout import Layout


def classification_loss(
    model: Any, params: Any, batch: Mapping[str, Any], *, remat: str = "products"
) -> tuple[jax.Array, jax.Array]:
    """The pair (summed cross-entropy of the rows' labels, their number), float32 scalars.

    Args:
        model: an encoder or a decoder with a head for classification.
        params: its parameters; `jlora.lift` makes them (frozen, lora).
        batch: ``tokens``, ``mask`` and ``types`` (rows, length) int32, as `TextModel.classifier`
            reads them; ``labels`` (rows,) int32, each label's number; ``weights`` (rows,), 0 for a
            row that only fills the batch: all count without it.
        remat: one of `REMATS`, as in `answer_loss`.

    Returns:
        the sum, and the weights' own; divided by it, the loss of a row.

    Raises:
        ValueError: when the model has no head for classification, or there are more tokens than
            positions that it has learned.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64, labels=("no", "yes"),
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> batch = {"tokens": jnp.array([[1, 2], [2, 0]]), "mask": jnp.array([[1, 1], [1, 0]])}
        >>> batch["labels"] = jnp.array([1, 0])
        >>> total, count = models.classification_loss(model, model.params, batch)
        >>> total.shape, count.item()
        ((), 2.0)
    """
    scores = model.classifier(params, batch, remat=remat)
    labels = jnp.asarray(batch["labels"])
    weights = jnp.asarray(batch.get("weights", jnp.ones(labels.shape)), jnp.float32)
    return cross_entropy(scores, labels, weights)


def classify(
    model: Any,
    texts: Sequence[str | tuple[str, str]],
    *weights: Any,
    batch_size: int = 32,
    max_length: int | None = None,
) -> np.ndarray:
    """The probability of each label for each text, (texts, labels) float32.

    Texts of like length are read together, in lengths padded to a few, so that few shapes compile.

    Args:
        model: an encoder or a decoder with a head for classification.
        texts: each one text or a pair.
        weights: the parameters, or ``frozen`` and ``lora``; the model's own if none are given.
        batch_size: texts at a time.
        max_length: the most tokens; a longer text loses its end. None: as many as the model has
            positions, and a longer one is an error.

    Raises:
        ValueError: when the model has no head for classification, ``batch_size`` is below 1, or a
            text is too long or no token at all.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import tokenizers
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64, labels=("no", "yes"),
        ... )
        >>> init = jax.jit(models.Decoder(config).init)
        >>> params = init(jax.random.key(0), jnp.ones((1, 1), int))["params"]
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "yes": 1}, "?"))
        >>> tokenizer = models.Tokenizer(words, None, (0,), {}, "tiny")
        >>> model = models.Model(params, config, tokenizer, "tiny")
        >>> shares = models.classify(model, ["yes", "yes?"])
        >>> shares.shape, [model.config.labels[best] in ("no", "yes") for best in shares.argmax(1)]
        ((2, 2), [True, True])
    """
    model.require_labels()
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1")
    inputs = model.inputs(texts, max_length=max_length)
    lengths = inputs["mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    shares = np.zeros((len(texts), len(model.config.labels)), np.float32)
    run = _compiled(model.config, model.attention, model.layout)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        width = min(bucket(int(lengths[chosen].max())), model.config.longest)
        batch = {
            name: _filled(array[chosen, :width], min(batch_size, len(order)), width)
            for name, array in inputs.items()
        }
        shares[chosen] = run(weights or (model.params,), batch)[: len(chosen)]
    return shares


def _filled(array: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The array with zeros behind its rows and columns, which the mask hides."""
    return np.pad(array, ((0, rows - array.shape[0]), (0, width - array.shape[1])))


@functools.cache
def _compiled(config: Any, attention: str, layout: Layout | None) -> Callable[..., jax.Array]:
    """The jitted probabilities, with the weights, (params,) or (frozen, lora), first."""
    nothing: Any = None
    model = made(nothing, config, nothing, config.family, attention, layout)

    def shares(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jax.nn.softmax(model.classifier(params, batch))

    def run(weights: tuple[Any, ...], batch: Mapping[str, jax.Array]) -> jax.Array:
        apply: Callable[..., jax.Array] = lift(shares) if len(weights) == 2 else shares
        return apply(*weights, batch)

    return jax.jit(run, out_shardings=None if layout is None else layout.whole)


def accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The share of rows whose label is the predicted one.

    Args:
        labels: (rows,) the labels' numbers.
        predicted: (rows,) those that the model gives.

    Raises:
        ValueError: when there are none, or not as many of the one as of the other.

    Example:
        >>> from jlora import models
        >>> models.accuracy([0, 1, 2, 1], [0, 1, 1, 1])
        0.75
    """
    labels, predicted = _compared(labels, predicted)
    return float(np.mean(labels == predicted))


def macro_f1(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The mean, over the labels that occur on either side, of 2 TP / (2 TP + FP + FN).

    Args:
        labels: (rows,) the labels' numbers.
        predicted: (rows,) those that the model gives.

    Raises:
        ValueError: when there are none, or not as many of the one as of the other.

    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7, of each label by itself.

    Example:
        >>> from jlora import models
        >>> models.macro_f1([0, 0, 1], [0, 1, 1])  # both labels: 2 / (2 + 1)
        0.6666666666666666
    """
    labels, predicted = _compared(labels, predicted)
    occurring = np.union1d(labels, predicted)
    right = labels == predicted
    both = (labels[:, None] == occurring).sum(0) + (predicted[:, None] == occurring).sum(0)
    hits = ((labels[:, None] == occurring) & right[:, None]).sum(0)
    return float(np.mean(2 * hits / both))  # both: TP + FN, and TP + FP


def _compared(labels: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"labels have shape {labels.shape} and predicted {predicted.shape}: expected a number "
            "for each row, and at least one row"
        )
    return labels, predicted
