"""`explain`: what became of every adapted leaf, as a report that prints as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jlora import _paths, _words
from jlora._frozen_leaf import is_frozen_leaf
from jlora._lift import _jax
from jlora._lift._compute import Compute, Use
from jlora._lift._lift import position, run, taken_dropout_key, takes_dropout_key
from jlora._lift._trace_axes import (
    adapted_otherwise,
    told_left_out,
    told_otherwise,
    trace_axes,
)
from jlora._lora_dict import of_leaves


def explain(fn: Callable[..., Any], *args: Any, argnums: int = 0, **kwargs: Any) -> Report:
    """What `lift` does with every adapted leaf of ``fn``: a `Report`, printable as a table.

    Nothing is computed: shapes are enough, and ``jax.ShapeDtypeStruct`` will do for every array.

    Args:
        fn: the function of parameters.
        *args: those of the lifted function: ``frozen``, ``lora`` and the others of ``fn``.
        argnums: as for `lift`.
        **kwargs: keyword arguments of ``fn``, and ``dropout_key`` as for `lift`.

    Returns:
        the uses of every adapted leaf, in the order in which the function meets them.

    Raises:
        ValueError: when ``lora`` does not fit ``frozen``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> def model(params, x):
        ...     return x @ params["kernel"]
        >>> print(jlora.explain(model, frozen, lora, jnp.ones((3, 7))))
        leaf    operation    model's line  ...
        kernel  dot_general  ...
        1 adapted leaves, 1 uses: 1 factored, 0 materialised. ...
    """
    takes_key = takes_dropout_key(fn)
    uses: dict[Use, None] = {}  # a loop's body may be traced more than once
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {at: leaf for at, leaf in enumerate(leaves) if _jax.is_array(leaf)}

    def traced(arrays):
        filled = (arrays.get(at, leaf) for at, leaf in enumerate(leaves))
        args, kwargs = jax.tree.unflatten(structure, filled)
        compute = Compute(lambda use: uses.setdefault(use), share_jits=False)
        key = taken_dropout_key(kwargs, takes_key)
        return jax.tree.leaves(run(compute, fn, argnums, args, kwargs, key))

    jax.eval_shape(lambda arrays: [leaf for leaf in traced(arrays) if _jax.is_array(leaf)], arrays)
    at = position(argnums, args)
    frozen, lora = args[at], args[at + 1]
    taken_dropout_key(kwargs, takes_key)
    axes = trace_axes(fn, *args[:at], frozen, *args[at + 2 :], argnums=at, **kwargs)
    left_out = {path: why for path, why in axes.left_out.items() if path not in lora}
    report = Report(tuple(uses), tuple(of_leaves(lora)), left_out)
    used = {path: node for path, node in lora.items() if path not in report.unused}
    return dataclasses.replace(
        report, otherwise=adapted_otherwise(axes, used), small=_small(frozen)
    )


def _small(frozen: Any) -> dict[str, str]:
    """How each frozen leaf is kept that is no array."""
    leaves, _ = _paths.flatten(frozen)
    told = {}
    for path, leaf in leaves.items():
        if is_frozen_leaf(leaf):
            plain = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
            kind = getattr(leaf, "format", type(leaf).__name__)
            told[path] = f"{kind}, {_words.size(leaf.nbytes)} in the place of {_words.size(plain)}"
    return told


@dataclasses.dataclass(frozen=True)
class Report:
    """Every use of every adapted leaf; print it for a table.

    FLOPs and bytes are those of one call's forward pass, loops multiplied out (a ``while_loop``
    counts as one step). "base" is what the operation costs with W alone.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> def model(params, x):
        ...     return x @ params["kernel"]
        >>> report = jlora.explain(model, frozen, lora, jnp.ones((3, 7)))
        >>> report.factored, report.materialised, report.unused
        (1, 0, ())
    """

    uses: tuple[Use, ...]
    paths: tuple[str, ...]  # all adapted leaves, also those that nothing uses
    # weights of products that are not adapted and that all-linear would leave out, and why
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # adapted leaves whose axes are not those that the function uses, and how it uses them
    otherwise: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # weights that are kept in a few bits: how, and in how many bytes
    small: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def factored(self) -> int:
        """How many uses never formed the merged weight."""
        return sum(use.factored for use in self.uses)

    @property
    def materialised(self) -> int:
        """How many uses formed the merged weight."""
        return sum(use.merged for use in self.uses)

    @property
    def formed(self) -> int:
        """How many uses formed a weight because its method has no better way."""
        return sum(use.formed for use in self.uses)

    @property
    def unused(self) -> tuple[str, ...]:
        """Adapted leaves that no operation met: training can't change them."""
        used = {use.path for use in self.uses}
        return tuple(path for path in self.paths if path not in used)

    def __str__(self) -> str:
        header = ("leaf", "operation", "model's line", "times", "base", "adapter", "how")
        rows = [
            (
                use.path,
                use.operation,
                use.source,
                f"{use.times}",
                _words.amount(use.base_flops * use.times, "FLOP"),
                _words.amount(use.adapter_flops * use.times, "FLOP"),
                f"{_how(use)}: {use.why}",
            )
            for use in self.uses
        ]
        widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [header, *rows]
        ]
        lines += [f"{path}: used by no operation" for path in self.unused]
        base = sum(use.base_flops * use.times for use in self.uses)
        extra = sum(use.adapter_flops * use.times for use in self.uses)
        share = f" ({100 * extra / base:.2f} % more)" if base else ""
        lines.append(
            f"{len(self.paths)} adapted leaves, {len(self.uses)} uses: {self.factored} factored, "
            + (f"{self.formed} formed by their method, " if self.formed else "")
            + f"{self.materialised} materialised. {_words.amount(base, 'FLOP')} with W, "
            f"{_words.amount(extra, 'FLOP')} for the adapters{share}."
        )
        lines += [f"{path} is kept small: {how}" for path, how in self.small.items()]
        return "\n".join([*lines, *told_otherwise(self.otherwise), *told_left_out(self.left_out)])


def _how(use: Use) -> str:
    return "factored" if use.factored else "formed" if use.formed else "MERGED"
