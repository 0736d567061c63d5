"""The loss of answers, chunk by chunk: scores over the vocabulary are never all in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jlora._cross_entropy import cross_entropy
from jlora.models._layout import computed
from jlora.models._net._kinds import require_writer
from jlora.models._net._laid_out import ROWS, laid_out

_SHARE = 0.5  # of the head's own memory, that a chunk's scores in float32 take


def answer_loss(
    model: Any,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    remat: str = "products",
    head_trains: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The pair (summed cross-entropy of the answers' tokens, their number), float32 scalars.

    Scores exist only where a token of an answer is predicted, and for some positions at a time: as
    many as take half of the head's memory.

    Args:
        model: from `jlora.models.load`.
        params: its parameters; `jlora.lift` makes them (frozen, lora).
        batch: ``tokens`` (batch, length) int32; ``positions`` and ``labels`` (batch, answers)
            int32, which places predict which token; ``weights`` (batch, answers), 0 for padding;
            where texts share a sequence, ``segments`` (batch, length) int32, as for `Model.apply`.
        remat: one of `REMATS`, what each layer keeps for its gradient: ``"none"`` computes nothing
            again and keeps everything; ``"products"`` keeps the results of products with weights;
            ``"full"`` keeps the layer's inputs alone: the least memory, a third more FLOPs.
        head_trains: whether what makes the scores (the head, or the embedding that it is tied to)
            is adapted. `jlora.lift` keeps it factored then, and scores are computed again in the
            gradient.

    Returns:
        the sum, and the weights' own; divided by it, the loss of a token.

    Raises:
        ValueError: when there are more tokens than positions that the model has learned, when the
            model is an encoder or has a head for classification, its attention does not keep the
            segments apart, or ``remat`` is none of the names.

    Source: as "Cut Your Losses", Wijmans et al. 2024, arXiv 2411.09009, by chunks of rows where it
    has chunks of the vocabulary.

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
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> batch = {
        ...     "tokens": jnp.array([[1, 2, 1, 0]]),
        ...     "positions": jnp.array([[1, 2]]),  # whose next tokens are the answer's
        ...     "labels": jnp.array([[1, 0]]),
        ...     "weights": jnp.array([[1.0, 1.0]]),
        ... }
        >>> @jax.jit
        ... def loss(params):
        ...     total, count = models.answer_loss(model, params, batch)
        ...     return total / count
        >>> loss(params).shape
        ()
    """
    if (config := getattr(model, "config", None)) is not None:
        require_writer(config, model.name, "learns answers")
    layout = getattr(model, "layout", None)
    at_work = (lambda head: head) if layout is None else functools.partial(layout.gathered, config)
    in_chunks = (
        recomputed_in_chunks if head_trains else functools.partial(sum_in_chunks, frozen=at_work)
    )

    def loss(head: Any, rows: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
        return cross_entropy(model.logits(head, rows), labels, weights)[0]

    def pair(params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden = model.hidden(
            params, batch["tokens"], segments=batch.get("segments"), remat=remat
        )  # (batch, length, width)
        hidden = jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1)
        predicted = hidden, batch["labels"], batch["weights"]
        chunk = rows_at_a_time(hidden.shape[-1], hidden.dtype)
        if layout is None:
            rows = [each.reshape(-1, *each.shape[2:]) for each in predicted]
        else:  # a chunk has some places of all rows, so that each device cuts its own rows
            rows = [laid_out(each.swapaxes(0, 1), *IN_PLACES[: each.ndim]) for each in predicted]
            chunk = max(1, chunk * layout.parts // len(hidden))
        head = {name: params[name] for name in model.head_names}
        return in_chunks(loss, chunk=chunk)(head, *rows), jnp.sum(batch["weights"])

    return computed(layout, pair)(params, batch)


IN_PLACES = (None, ROWS, None)  # (answers, batch, width)


def rows_at_a_time(width: int, dtype: Any) -> int:
    """The rows of a chunk: so many that their scores take half of what the head takes.

    Each chunk reads the whole head for every product with it. With fewer rows that is most of what
    moves through memory; with these the scores are, which are written and read several times, and
    there are ``width / 4`` FLOPs of the products to each byte of the head.
    """
    return max(1, int(_SHARE * width * jnp.dtype(dtype).itemsize / 4))


def sum_in_chunks(
    loss: Callable[..., jax.Array],
    *,
    chunk: int,
    frozen: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., jax.Array]:
    """``loss(params, rows, labels, weights)``, a sum over rows, of so many rows at a time.

    A chunk's gradient is computed with its value, so that nothing of it is kept but the gradient of
    its rows, and no product with ``params`` is computed twice. ``params`` gets a gradient where one
    is asked for; labels and weights are constants. (As "Cut Your Losses", Wijmans et al. 2024,
    arXiv 2411.09009, has it, by chunks of rows and not of the vocabulary.)

    Args:
        loss: the function.
        chunk: the rows at a time.
        frozen: what becomes of ``params`` before the first chunk, where they get no gradient.
    """

    @jax.custom_vjp
    def total(params, rows, labels, weights):
        params = frozen(params)
        value, _ = _each(lambda *part: (loss(params, *part), ()), chunk, rows, labels, weights)
        return value

    def forward(*primals):
        trains = any(leaf.perturbed for leaf in jax.tree.leaves(primals[0]))
        params, *rest = jax.tree.map(lambda primal: primal.value, primals)
        params = params if trains else frozen(params)
        wanted = (0, 1) if trains else (1,)

        def part(*part):
            value, grads = jax.value_and_grad(loss, argnums=wanted)(params, *part)
            return (value, grads[:-1]), grads[-1]

        (value, of_params), of_rows = _each(part, chunk, *rest)
        return value, (of_params, of_rows)

    def backward(gradients, cotangent):
        if isinstance(cotangent, SymbolicZero):
            return None, None, None, None
        scaled = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), gradients)
        of_params, of_rows = scaled
        return of_params[0] if of_params else None, of_rows, None, None

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total


def recomputed_in_chunks(loss: Callable[..., jax.Array], *, chunk: int) -> Callable[..., jax.Array]:
    """As `sum_in_chunks`; each chunk is computed again for its gradient, by any transformation."""

    @jax.checkpoint
    def part(params, *part):
        return loss(params, *part), ()

    return lambda params, *arrays: _each(functools.partial(part, params), chunk, *arrays)[0]


def _each(part: Callable[..., tuple[Any, Any]], chunk: int, *arrays: jax.Array) -> tuple[Any, Any]:
    """(the sum of the first results, the second results joined) of ``part`` on chunks of rows."""
    count = len(arrays[0])
    chunks = -(-count // chunk)
    if chunks <= 1:
        return part(*arrays)
    size = -(-count // chunks)

    def cut(array):
        padding = [(0, chunks * size - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(chunks, size, *array.shape[1:])

    def step(total, cuts):
        value, joined = part(*cuts)
        return jax.tree.map(jnp.add, total, value), joined

    cuts = tuple(map(cut, arrays))
    first = jax.eval_shape(part, *(array[0] for array in cuts))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, joined = lax.scan(step, zeros, cuts)
    return total, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], joined)
