"""Law 1 on one harness: each operand of floats in turn as the weight, in each reading."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from differences import differences, slack
from harnesses import arguments, number, refused
from linearity import linearity
from program import Program, compiled, said
from readings import Reading, readings

import jlora


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An operand that is not adapted, or a harness of which none is."""

    harness: str
    operand: int | None
    why: str


@dataclasses.dataclass(frozen=True)
class Checked:
    """One operand of one harness in one reading."""

    harness: str
    operand: int
    reading: Reading
    compared: str  # what could be
    failures: tuple[str, ...]
    linear: str | None  # in the operand, as `linearity` says
    uses: tuple[jlora.Use, ...]


def check(harness: Any) -> list[LeftOut | Checked]:
    """All its operands, without a warning of merged weights or of what the catalogue does."""
    with warnings.catch_warnings(action="ignore"):
        return list(_check(harness))


def _check(harness: Any) -> Iterator[LeftOut | Checked]:
    name = harness.fullname
    if why := refused(harness):
        yield LeftOut(name, None, f"JAX itself refuses: {why}")
        return
    operands = arguments(harness)
    whys = [_not_adapted(operand) for operand in operands]
    if all(why == INTEGERS for why in whys):
        yield LeftOut(name, None, "no operand of floats")
    for at, why in enumerate(whys):
        if why is None:
            yield from check_operand(Program(harness, operands, at))
        elif why != INTEGERS:
            yield LeftOut(name, at, why)


INTEGERS = "integers"


def _not_adapted(operand: Any) -> str | None:
    """Why an operand is no weight, or None."""
    if jax.dtypes.issubdtype(operand.dtype, np.complexfloating):
        return "complex: jlora adapts real weights"
    if not jax.dtypes.issubdtype(operand.dtype, np.floating):
        return INTEGERS
    if operand.dtype == np.float64 and not jax.config.jax_enable_x64:
        return "float64: needs jax_enable_x64"
    if operand.ndim == 0:
        return "a number without dimensions"
    return None if operand.size else "without entries"


def check_operand(program: Program) -> Iterator[LeftOut | Checked]:
    """One operand, in each reading."""
    name = program.harness.fullname
    try:
        jax.block_until_ready(program.value(program.weight))
    except Exception as error:
        yield LeftOut(name, program.at, f"JAX itself refuses: {said(error)}")
        return
    loss = slack([leaf.dtype for leaf in [*program.arguments, *program.shapes]], program.rounds)
    exact = program.in_float32() if loss else None
    kind = linearity(exact or program, loss)
    for reading in readings(program.weight.shape):
        lora = reading.adapter(name, program.at)
        try:
            uses = program.uses(reading, lora)
            compared, failures = _law_1(program, exact, loss, reading, lora)
        except Exception as error:
            uses, compared, failures = (), "nothing: it crashed", (f"crash: {said(error)}",)
        yield Checked(name, program.at, reading, compared, failures, kind, uses)


def _law_1(
    program: Program, exact: Program | None, loss: float, reading: Reading, lora: Any
) -> tuple[str, tuple[str, ...]]:
    """What could be compared, and what is wrong."""
    run = compiled(program, exact, reading, lora)
    results = run(program.weight)
    failures = list(differences(results, loss))
    if failures:
        failures = list(differences(results, loss, run(_moved(program.weight))))
    value, gradient = map(_arrays, results["merged"])
    if gradient and any(np.isnan(leaf).any() for leaf in value):
        spoilt = differences(run(program.weight, np.nan), loss)
        failures += [
            f"{each}, with NaN sent back to NaN" for each in spoilt if each.startswith("gradient")
        ]

    if not any(np.isfinite(leaf).any() for leaf in value):
        compared = "nothing: no entry is finite"
    elif program.no_gradient:
        compared = f"values: JAX has no gradient: {program.no_gradient}"
    elif not any((np.isfinite(leaf) & (leaf != 0)).any() for leaf in gradient):
        compared = "values: the gradient is zero or not finite"
    else:
        compared = "values and gradients"
    return compared, tuple(failures)


def _moved(weight: Any) -> Any:
    """The weight, each entry off by about a rounding."""
    noise = np.random.default_rng(number("moved")).uniform(-1, 1, weight.shape)
    return (weight * (1 + jnp.finfo(weight.dtype).eps * noise)).astype(weight.dtype)


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
