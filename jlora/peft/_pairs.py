"""One adapted torch parameter: A, B and their scaling, and the tensors that hold them.

PEFT keeps the paper's orientation: A is (rank, in) and B is (out, rank). For experts in one
parameter A is (experts * rank, in), the experts outermost, and B is (out, rank * experts), the
experts innermost. Where PEFT takes inputs for outputs, its A is our B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jlora.peft._layout import Parameter

Outputs = slice | np.ndarray  # a span of them, or their numbers


@dataclasses.dataclass(frozen=True)
class Pair:
    """A low-rank delta as we hold it: ``A diag(scaling) B``."""

    a: np.ndarray  # (*experts, in, rank)
    b: np.ndarray  # (*experts, rank, out)
    scaling: np.ndarray  # (rank,) float32
    magnitude: np.ndarray | None = None  # (out,), for DoRA

    @property
    def rank(self) -> int:
        return self.a.shape[-1]


def tensor_names(parameter: Parameter, prefix: str) -> tuple[str, str]:
    """The names of A and B; ``prefix`` is the parameter's, as `prefixes` gives it."""
    if parameter.embeds:
        return f"{prefix}.lora_embedding_A", f"{prefix}.lora_embedding_B"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def magnitude_name(prefix: str) -> str:
    return f"{prefix}.lora_magnitude_vector"


def prefixes(parameters: Sequence[Parameter]) -> dict[str, str]:
    """The beginning of each adapted parameter's tensors' names, by its full name.

    PEFT wraps a module once for each parameter of it, in their order: the last one is outermost.
    """
    bare: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.bare:
            bare.setdefault(parameter.module, []).append(parameter)
    depths = {
        parameter.full_name: len(each) - 1 - at
        for each in bare.values()
        for at, parameter in enumerate(each)
    }
    return {p.full_name: p.module + ".base_layer" * depths.get(p.full_name, 0) for p in parameters}


def read(
    parameter: Parameter, prefix: str, tensors: Mapping[str, np.ndarray], rank: int, scaling: float
) -> Pair | str:
    """The parameter's pair, or what is wrong with its tensors."""
    leaf = parameter.parts[0].leaf
    experts = leaf.stack[leaf.layers :]
    count = int(np.prod(experts))
    names = tensor_names(parameter, prefix)
    inputs, outputs = leaf.inputs, parameter.outputs
    if parameter.turned:
        inputs, outputs = outputs, inputs
    shapes = ((count * rank, inputs), (outputs, count * rank))
    problems = [
        f"{name}: expected {shape}, got {tensors[name].shape}"
        for name, shape in zip(names, shapes, strict=True)
        if tensors[name].shape != shape
    ]
    if problems:
        return "; ".join(problems)
    a, b = (tensors[name] for name in names)
    a = np.swapaxes(a.reshape(*experts, rank, inputs), -1, -2)
    b = np.moveaxis(b.reshape(outputs, rank, *experts), (0, 1), (-1, -2))
    if parameter.turned:
        a, b = np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2)
    magnitude = tensors.get(magnitude_name(prefix))
    if magnitude is not None and magnitude.shape != (parameter.outputs,):
        expected = (parameter.outputs,)
        return f"{magnitude_name(prefix)}: expected {expected}, got {magnitude.shape}"
    return Pair(a, b, np.full(rank, scaling, np.float32), magnitude)


def write(parameter: Parameter, prefix: str, pair: Pair) -> dict[str, np.ndarray]:
    """The tensors of a pair whose scaling is one number."""
    name_a, name_b = tensor_names(parameter, prefix)
    a, b = pair.a, pair.b
    if parameter.turned:
        a, b = np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2)
    tensors = {
        name_a: np.swapaxes(a, -1, -2).reshape(-1, a.shape[-2]),
        name_b: np.moveaxis(b, (-1, -2), (0, 1)).reshape(b.shape[-1], -1),
    }
    if pair.magnitude is not None:
        tensors[magnitude_name(prefix)] = pair.magnitude
    return tensors


def beside(pairs: Sequence[tuple[Outputs, Pair]], outputs: int) -> Pair:
    """Pairs for some of the outputs each as one: A side by side, B in blocks, zero elsewhere.

    Where all have one and the same A it is kept once.
    """
    first = pairs[0][1]
    shared = all(
        np.array_equal(pair.a, first.a) and np.array_equal(pair.scaling, first.scaling)
        for _, pair in pairs
    )
    rank = first.rank if shared else sum(pair.rank for _, pair in pairs)
    dtype = jnp.result_type(*(pair.b.dtype for _, pair in pairs))
    b = np.zeros((*first.b.shape[:-2], rank, outputs), dtype)
    at = 0
    for span, pair in pairs:
        b[..., at : at + pair.rank, span] = pair.b
        at += 0 if shared else pair.rank
    if shared:
        return Pair(first.a, b, first.scaling)
    a = np.concatenate([pair.a for _, pair in pairs], axis=-1)
    return Pair(a, b, np.concatenate([pair.scaling for _, pair in pairs]))


def uniform(pair: Pair) -> Pair:
    """The same delta with one scaling, the largest: B takes what the others differ by."""
    largest = pair.scaling[np.argmax(np.abs(pair.scaling))]
    if (pair.scaling == largest).all():
        return pair
    ratio = (pair.scaling / largest).astype(np.float32)
    b = (pair.b.astype(np.float32) * ratio[:, None]).astype(pair.b.dtype)
    return dataclasses.replace(pair, b=b, scaling=np.full_like(pair.scaling, largest))


def of_outputs(pair: Pair, outputs: Outputs) -> Pair:
    """The pair of these outputs, without the columns that only pad it or are others' alone."""
    mine = np.arange(pair.b.shape[-1])[outputs]
    b, others = pair.b[..., mine], np.delete(pair.b, mine, axis=-1)
    padding = pair.scaling == 0
    elsewhere = _any_row(others) & ~_any_row(b)
    kept = np.flatnonzero(~(padding | elsewhere))
    return Pair(pair.a[..., kept], b[..., kept, :], pair.scaling[kept])


def _any_row(b: np.ndarray) -> np.ndarray:
    """Which rows of B are not all zero, for any expert."""
    used = (b != 0).any(-1)
    return used.reshape(-1, used.shape[-1]).any(0)
