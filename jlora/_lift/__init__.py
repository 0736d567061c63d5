"""`lift` and `explain`: a function of parameters made a function of (frozen, lora)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jlora import _merge, _paths
from jlora._lift import (  # noqa: F401 - most of them register rules
    _compat,
    _control,
    _convolutions,
    _joining,
    _linear,
    _movement,
    _products,
    _slicing,
)
from jlora._lift._adapted import Adapted, adapt
from jlora._lift._report import Report
from jlora._lift._stage import Staged
from jlora._lift._walk import Use, Walk
from jlora._methods import Node


class MaterialisedWarning(UserWarning):
    """An operation got the merged weight ``W + scaling * A B`` because jlora has no rule for it."""


def lift(fn: Callable[..., Any], *, argnum: int = 0, strict: bool = False) -> Callable[..., Any]:
    """The function of (frozen, lora) that computes ``fn(merge(frozen, lora), ...)`` unmerged.

    ``lift(f)(frozen, lora, *args)`` equals ``f(merge(frozen, lora), *args)`` within rounding, and
    so do its gradients. Where a product uses an adapted weight, the base product and two thin
    products are added; W + scaling * A B is not formed. An operation that jlora does not know gets
    the merged weight, with one `MaterialisedWarning` that names the leaf, the operation and the
    source line.

    The lifted function is pure as ``fn`` is, and composes with jit, grad, vmap, scan and sharding.
    jit it as you would ``fn``: without, it is traced at each call.

    Each call may pass ``dropout_key``: a random key, with which every adapter whose node has a
    dropout rate gets its activations through a mask of its own for each use and each step of a
    loop. Lookups and merged weights have no activations, and no dropout. ``fn`` gets the key too if
    it has an argument of that name.

    Args:
        fn: any function of a parameter tree. Arrays in its arguments are traced; every other
            Python value (bool, int, str, None, functions) stays as it is.
        argnum: which positional argument of ``fn`` is the parameter tree; ``frozen`` and ``lora``
            stand there, one after the other, in the lifted function.
        strict: raise instead of forming a merged weight.

    Raises:
        ValueError: at the call, when ``lora`` does not fit ``frozen``; with ``strict``, when an
            operation would get a merged weight.

    Example:
        >>> apply = jax.jit(jlora.lift(model.apply))
        >>> logits = apply(frozen, lora, tokens)
    """
    if argnum < 0:
        raise ValueError(f"argnum is {argnum}: expected the position of the parameters, 0 or more")

    takes_key = False
    with contextlib.suppress(TypeError, ValueError):  # a builtin has no signature
        takes_key = _DROPOUT.name in inspect.signature(fn).parameters

    @functools.wraps(fn)
    def lifted(*args, **kwargs):
        key = kwargs.get(_DROPOUT.name) if takes_key else kwargs.pop(_DROPOUT.name, None)
        staged, operands = _stage(fn, argnum, args, kwargs, key)
        walk = Walk(_refuse if strict else _Warner())
        return staged.unflatten(_finish(walk, walk(staged.jaxpr, operands)))

    del lifted.__wrapped__  # jit reads argument names from a signature: it must be this one's
    with contextlib.suppress(TypeError, ValueError):  # a builtin has none
        vars(lifted)["__signature__"] = _signature(fn, argnum)
    lifted.__doc__ = f"``{getattr(fn, '__name__', 'fn')}`` of (frozen, lora), made by jlora.lift."
    return lifted


def explain(
    fn: Callable[..., Any], frozen: Any, lora: Mapping[str, Node], *args: Any, **kwargs: Any
) -> Report:
    """What `lift` does with every adapted leaf of ``fn``: a `Report`, printable as a table.

    Nothing is computed: shapes are enough, and ``jax.ShapeDtypeStruct`` will do for every array.

    Raises:
        ValueError: when ``lora`` does not fit ``frozen``.
    """
    uses: dict[Use, None] = {}  # a loop's body may be traced more than once
    leaves, structure = jax.tree.flatten(((frozen, lora, *args), kwargs))
    arrays = {at: leaf for at, leaf in enumerate(leaves) if _compat.is_array(leaf)}

    def run(arrays):
        filled = (arrays.get(at, leaf) for at, leaf in enumerate(leaves))
        args, kwargs = jax.tree.unflatten(structure, filled)
        staged, operands = _stage(fn, 0, args, kwargs)
        walk = Walk(lambda use: uses.setdefault(use), share_jits=False)
        return _finish(walk, walk(staged.jaxpr, operands))

    jax.eval_shape(run, arrays)
    return Report(tuple(uses), tuple(lora))


def _finish(walk: Walk, results: list[Any]) -> list[Any]:
    return walk.plain(results, None, "returned by the function")


def _stage(fn, argnum: int, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any = None):
    """The jaxpr of the base function, and its operands with adapted values in place."""
    if len(args) < argnum + 2:
        raise ValueError(
            f"the lifted function takes (frozen, lora) as arguments {argnum} and {argnum + 1}, "
            f"but got {len(args)} positional arguments"
        )
    frozen, lora = args[argnum : argnum + 2]
    if not isinstance(lora, Mapping):
        raise ValueError(
            f"argument {argnum + 1} of the lifted function is the lora dict that split returns, "
            f"got {type(lora).__name__}"
        )
    leaves, _ = _merge.check(frozen, lora)
    staged = Staged(fn, (*args[:argnum], frozen, *args[argnum + 2 :]), kwargs)
    operands = dict(zip(staged.traced, (staged.leaves[at] for at in staged.traced), strict=True))
    for at, path in enumerate(leaves, start=len(jax.tree.leaves(args[:argnum]))):
        if path in lora:
            node = lora[path]
            own_key = None if key is None else _paths.key_for(key, path)
            operands[at] = adapt(staged.leaves[at], node, path, node.filter(own_key))
    return staged, list(operands.values())


_DROPOUT = inspect.Parameter("dropout_key", inspect.Parameter.KEYWORD_ONLY, default=None)


def _signature(fn: Callable[..., Any], argnum: int) -> inspect.Signature:
    """The lifted function's own: (frozen, lora) in the place of the parameters."""
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    kind = inspect.Parameter.POSITIONAL_ONLY
    if (
        argnum < len(parameters)
        and parameters[argnum].kind is not parameters[argnum].VAR_POSITIONAL
    ):
        names = ("frozen", "lora")
        before = [parameter.replace(kind=kind) for parameter in parameters[:argnum]]
        pair = [inspect.Parameter(name, kind) for name in names]
        parameters = [*before, *pair, *parameters[argnum + 1 :]]
    if _DROPOUT.name not in signature.parameters:
        last = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
        parameters = [*(p for p in parameters if p not in last), _DROPOUT, *last]
    return signature.replace(parameters=parameters)


def _message(use: Use) -> str:
    return (
        f"{use.path} was merged for `{use.operation}` at {use.source}: {use.why}. The result is "
        "right, and costs memory and time of the weight's size; jlora.explain shows every use"
    )


class _Warner:
    """Warns of each merged weight once, by leaf, operation and place."""

    def __init__(self):
        self.told: set[tuple[str, str, str]] = set()

    def __call__(self, use: Use) -> None:
        key = (use.path, use.operation, use.source)
        if not use.factored and key not in self.told:
            self.told.add(key)
            warnings.warn(_message(use), MaterialisedWarning, stacklevel=2)


def _refuse(use: Use) -> None:
    if not use.factored:
        raise ValueError(
            f"strict: {use.path} would be merged for `{use.operation}` at {use.source}: {use.why}"
        )


__all__ = ["Adapted", "MaterialisedWarning", "Report", "Use", "explain", "lift"]
