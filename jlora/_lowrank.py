"""The algebra of W + A B: the dimensions of a weight, factors over some of them, their sum."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from jlora import _placement


@dataclasses.dataclass(frozen=True)
class Axes:
    """The dimensions of a weight by what its products do with them, each in the weight's order.

    The paper's W acts from the left, as (out, in); a JAX kernel acts from the right, as (in, out).
    Which is which is said here, once, so that any layout is adapted alike.

    Raises:
        ValueError: unless each dimension stands in exactly one of the three, and there is an input
            and an output.

    Example:
        >>> import jlora
        >>> jlora.Axes(inputs=(1,), outputs=(2, 3), stack=(0,))  # (layer, in, head, out)
        Axes(inputs=(1,), outputs=(2, 3), stack=(0,))
    """

    inputs: tuple[int, ...] = (0,)  # contracted with the activations
    outputs: tuple[int, ...] = (1,)  # kept in the result
    stack: tuple[int, ...] = ()  # one matrix each: layers of a scan, experts

    def __post_init__(self):
        for name in ("inputs", "outputs", "stack"):  # of lists and NumPy's numbers too
            object.__setattr__(self, name, tuple(map(operator.index, getattr(self, name))))
        dims = (*self.stack, *self.inputs, *self.outputs)
        if sorted(dims) != list(range(len(dims))):
            raise ValueError(
                f"{self}: each of the {len(dims)} dimensions 0..{len(dims) - 1} must stand in "
                "exactly one of inputs, outputs and stack"
            )
        if not self.inputs or not self.outputs:
            raise ValueError(f"{self}: a low-rank delta needs an input and an output dimension")


RANK = -1  # the rank's place among a factor's dimensions

Dims = tuple[int, ...]  # for each axis of an array: the weight's dimension, or RANK


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """An array that covers some dimensions of a weight, and the rank; a scaling may do neither.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Factor
        >>> a = Factor(jnp.ones((7, 2)), (0, RANK))  # the A of a weight (7, 5), of rank 2
        >>> len(a.dims) == a.array.ndim
        True
    """

    array: jax.Array
    dims: Dims = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Product:
    """``gain * scaling * A B``, not formed.

    The scaling stays beside its factors until they are used: scaled in advance, a second B would
    lie there for as long as the first.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Factor, Product
        >>> a, b = Factor(jnp.ones((7, 2)), (0, RANK)), Factor(jnp.ones((2, 5)), (RANK, 1))
        >>> product = Product(a, b, scaling=Factor(jnp.float32(0.5), ()))
        >>> product.delta(2).shape  # 2: the weight's dimensions
        (7, 5)
        >>> float(product.delta(2)[0, 0])
        1.0
    """

    a: Factor
    b: Factor
    # float32: one for all, or over stack dimensions and the rank; None: 1
    scaling: Factor | None = None
    # what each entry of the product is multiplied by, along some dimensions; None: 1
    gain: Factor | None = None

    @property
    def scaled_b(self) -> Factor:
        """``scaling * B``, in float32 or wider."""
        b = self.b.array.astype(wide(self.b.array.dtype))
        return Factor(*scaled(b, self.b.dims, self.scaling))

    def delta(self, ndim: int) -> jax.Array:
        """The array itself, its dimensions in the weight's order (absent ones have size 1)."""
        delta = multiply(self.a, self.scaled_b, ndim=ndim)
        return delta if self.gain is None else delta * along(self.gain, range(ndim))

    def two_factors(self) -> Self:
        """The same without a gain of its own, which one of the factors takes."""
        if self.gain is None:
            return self
        in_a = set(self.gain.dims) <= set(self.a.dims)
        name, factor = ("a", self.a) if in_a else ("b", self.b)
        scaled_factor = Factor(*scaled(factor.array, factor.dims, self.gain))
        return dataclasses.replace(self, gain=None, **{name: scaled_factor})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """``gain * (W + the sum of the products)``: what stands for a weight W without being formed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Factor, Factored, Product
        >>> a, b = Factor(jnp.ones((7, 2)), (0, RANK)), Factor(jnp.ones((2, 5)), (RANK, 1))
        >>> merged = Factored((Product(a, b),)).merged(jnp.ones((7, 5)))
        >>> merged.shape, float(merged[0, 0])  # 1 + 2
        ((7, 5), 3.0)
    """

    products: tuple[Product, ...]
    gain: Factor | None = None  # what each entry along some dimensions is multiplied by; None: 1

    def merged(self, weight: jax.Array) -> jax.Array:
        """The plain array in the weight's dtype, computed in float32 or wider and cast once."""
        deltas = [product.delta(weight.ndim) for product in self.products]
        return add_deltas(weight, deltas, self.gain)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elementwise:
    """``form(W, *products)``, entry by entry: what stands for W and is formed at each use.

    For methods whose delta has no low rank. The array is made where a product needs it, of the part
    of W that is there (one layer of a stack), and again for the gradient; lookups choose rows of W,
    A and B first.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import RANK, Elementwise, Factor, Product
        >>> def times(w, delta):
        ...     return w * (1 + delta)
        >>> a, b = Factor(jnp.ones((7, 2)), (0, RANK)), Factor(jnp.ones((2, 5)), (RANK, 1))
        >>> merged = Elementwise((Product(a, b),), times).merged(jnp.full((7, 5), 2.0))
        >>> merged.shape, float(merged[0, 0])  # 2 * (1 + 2)
        ((7, 5), 6.0)
    """

    products: tuple[Product, ...]
    # (w, *deltas) -> the array: float32 or wider, the deltas of w's shape or size 1; a function
    # that is the same object at each call
    form: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    why: str = dataclasses.field(default="as its method says", metadata={"static": True})

    def merged(self, weight: jax.Array) -> jax.Array:
        """The plain array in the weight's dtype, computed in float32 or wider and cast once."""
        deltas = [product.delta(weight.ndim) for product in self.products]
        return form_elementwise(self.form, weight, deltas)


def form_elementwise(
    form: Callable[..., jax.Array], weight: jax.Array, deltas: Sequence[jax.Array]
) -> jax.Array:
    """``form(weight, *deltas)`` in float32 or wider, cast once to the weight's dtype."""
    dtype = wide(weight.dtype, *(delta.dtype for delta in deltas))
    result = form(weight.astype(dtype), *(delta.astype(dtype) for delta in deltas))
    return jnp.broadcast_to(result, weight.shape).astype(weight.dtype)


def scaled(
    array: jax.Array, dims: tuple[Any, ...], scaling: Factor | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    """An array over ``dims`` times the scaling, and its dimensions, to which the scaling's come.

    In the array's dtype; a bfloat16 scaling would be rounded.
    """
    if scaling is None:
        return array, dims
    more = tuple(dim for dim in scaling.dims if dim not in dims)
    array = jnp.expand_dims(array, tuple(range(len(more))))
    dims = (*more, *dims)
    by = along(scaling, dims)
    if not more:
        by = _placement.like(by, array) if scaling.dims else scaling.array
    return (array.astype(wide(array.dtype)) * by).astype(array.dtype), dims


def multiply(a: Factor, b: Factor, *, ndim: int) -> jax.Array:
    """The sum over the rank of A B, its dimensions in the weight's order (absent ones have size 1).

    Accumulates in float32 or wider, because the sum is about to be added to a weight.
    """
    present = sorted((set(a.dims) | set(b.dims)) - {RANK})
    dtype = wide(a.array.dtype, b.array.dtype)
    product = _placement.einsum(
        a.array.astype(dtype),
        [dim + 1 for dim in a.dims],
        b.array.astype(dtype),
        [dim + 1 for dim in b.dims],
        [dim + 1 for dim in present],
    )
    return jnp.expand_dims(product, [dim for dim in range(ndim) if dim not in present])


def wide(*dtypes: Any) -> Any:
    """float32, or wider if one of the dtypes is."""
    return promoted(jnp.float32, *dtypes)


def promoted(*dtypes: Any) -> Any:
    """The dtype that holds all of them, also where JAX is told to promote none in silence."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def add_deltas(weight: jax.Array, deltas: Sequence[jax.Array], gain: Factor | None) -> jax.Array:
    """``gain * (weight + deltas)``, in float32 or wider and cast once to the weight's dtype.

    A bfloat16 sum would lose a small delta whole. Where the delta is zero the weight comes back bit
    for bit (-0.0 too).
    """
    arrays = (*deltas, *(() if gain is None else (gain.array,)))
    dtype = promoted(weight.dtype, *(array.dtype for array in arrays))
    total = weight.astype(dtype)
    if deltas:
        delta = functools.reduce(jnp.add, (delta.astype(dtype) for delta in deltas))
        delta = jnp.broadcast_to(_placement.like(delta, total), weight.shape)
        total = _add_exactly(total, _placement.like(delta, total))
    if gain is not None:
        total = total * _placement.like(along(gain, range(weight.ndim)).astype(dtype), total)
    return total.astype(weight.dtype)


def along(factor: Factor, dims: Sequence[int | None]) -> jax.Array:
    """The factor's array over ``dims`` in their order, of size 1 where it has no such dimension.

    None stands for a dimension that no factor has; of its own the factor may have others of size 1.

    Args:
        factor: over dimensions of a weight.
        dims: what the axes of the result are to be.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora.extend import Factor, along
        >>> gain = Factor(jnp.ones(5), (1,))  # one number for each output of a weight (in, out)
        >>> along(gain, (None, 0, 1)).shape  # to meet an array (batch, in, out)
        (1, 1, 5)
    """
    gone = tuple(axis for axis, dim in enumerate(factor.dims) if dim not in dims)
    array = jnp.squeeze(factor.array, gone)
    have = [dim for dim in factor.dims if dim in dims]
    array = jnp.transpose(array, [have.index(dim) for dim in dims if dim in have])
    return jnp.expand_dims(array, [at for at, dim in enumerate(dims) if dim not in have])


@jax.custom_jvp
def _add_exactly(weight, delta):
    return jnp.where(delta == 0, weight, weight + delta)


@_add_exactly.defjvp
def _(primals, tangents):
    weight_dot, delta_dot = tangents
    return _add_exactly(*primals), weight_dot + delta_dot


def matrix_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """The weight read as one matrix of its stack: (product of inputs, product of outputs)."""
    return (
        math.prod(shape[dim] for dim in axes.inputs),
        math.prod(shape[dim] for dim in axes.outputs),
    )


def squared_sums(
    weight: jax.Array, products: Sequence[Product], over: Sequence[int]
) -> jax.Array | None:
    """The sum of squares over some dimensions of W + sum of products, none of them formed.

    ``|w + A b|^2 = |w|^2 + 2 b.(A'w) + b.(A'A)b`` for each column w of W and b of B. The result is
    in float32 or wider, over the weight's other dimensions in their order; None where a product has
    the dimensions in both of its factors.
    """
    dims, kept = list(range(weight.ndim)), [d for d in range(weight.ndim) if d not in over]
    rank, other = weight.ndim, weight.ndim + 1  # labels
    pairs: list[tuple[Factor, Factor]] = []  # with and without what is summed over
    for product in (product.two_factors() for product in products):
        for inner, outer in ((product.a, product.scaled_b), (product.scaled_b, product.a)):
            if set(over) <= set(inner.dims) and not set(over) & set(outer.dims):
                pairs.append((inner, outer))
                break
        else:
            return None
    dtype = wide(weight.dtype)

    def einsum(x, x_labels, y, y_labels, out):
        product = _placement.einsum(x, x_labels, y, y_labels, out, precision="highest")
        return product.astype(dtype)

    def labels(factor: Factor, of_rank: int) -> list[int]:
        return [of_rank if dim == RANK else dim for dim in factor.dims]

    total = jnp.sum(jnp.square(weight.astype(dtype)), axis=tuple(over))
    for inner, outer in pairs:
        inner_labels, outer_labels = labels(inner, rank), labels(outer, rank)
        # a bfloat16 weight meets A as it does in the forward pass; no wider copy of it is made
        across = einsum(inner.array.astype(weight.dtype), inner_labels, weight, dims, [rank, *kept])
        summed = 2 * across
        for second, second_outer in pairs:
            second_labels = labels(second, other)
            stack = [d for d in kept if d in inner_labels or d in second_labels]
            within = einsum(
                inner.array, inner_labels, second.array, second_labels, [*stack, rank, other]
            )
            against = einsum(
                within,
                [*stack, rank, other],
                second_outer.array,
                labels(second_outer, other),
                [rank, *(d for d in kept if d in stack or d in second_outer.dims)],
            )
            present = [d for d in kept if d in stack or d in second_outer.dims]
            absent = [1 + at for at, d in enumerate(kept) if d not in present]
            summed = summed + jnp.expand_dims(against, absent)
        own = along(Factor(outer.array, tuple(outer_labels)), [rank, *kept])
        total = total + jnp.sum(own * summed, axis=0)
    return jnp.maximum(total, 0)
