"""The loss of labels, each at its place: a sum, and how much was counted."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora._lowrank import wide


def cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The pair (sum over places of ``mask * -log softmax(logits)[label]``, sum of the mask).

    Divided by each other they are the mean: `make_step` does it, for a batch in parts too. A place
    is left out by the mask and never by its label, so that the token of padding may be a label
    elsewhere; whatever stands at such a place, NaN as well, leaves loss and gradient alone.

    Args:
        logits: (..., classes), scores of any float dtype; computed in float32 or wider.
        labels: (...) int, the right class of each place. One that is no class makes the loss NaN.
        mask: (...) bool, or weights; 0 leaves a place out. None: each place counts once.

    Returns:
        two scalars, float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> logits, labels = jnp.zeros((2, 3, 4)), jnp.array([[1, 2, 0], [3, -1, -1]])
        >>> mask = jnp.array([[1, 1, 1], [1, 0, 0]])
        >>> total, count = jlora.trainer.cross_entropy(logits, labels, mask)
        >>> round(float(total / count), 4), float(count)  # log 4
        (1.3863, 4.0)
    """
    logits = logits.astype(wide(logits.dtype))
    mask = jnp.ones(labels.shape, logits.dtype) if mask is None else mask.astype(logits.dtype)
    counts = mask != 0
    logits = jnp.where(counts[..., None], logits, 0)
    # by comparison: the gradient of a gather is a scatter, which has the softmax written out first
    classes = logits.shape[-1]
    its = jnp.arange(classes) == labels[..., None]
    of_label = jnp.sum(jnp.where(its, logits, 0), axis=-1)
    possible = (labels >= 0) & (labels < classes) | ~counts
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.where(possible, of_label, jnp.nan)
    return jnp.sum(mask * losses), jnp.sum(mask)
