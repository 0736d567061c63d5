"""`lift`: a function of parameters made a function of (frozen, lora)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jlora import _lora_dict, _paths
from jlora._frozen_leaf import is_frozen_leaf, plain
from jlora._lift import _position
from jlora._lift._compute import Compute, Use
from jlora._lift._frozen_base import FrozenBase
from jlora._lift._term import Origin, Term
from jlora._lift._traced_call import TracedCall
from jlora._lift._walk import Walk
from jlora._lift._weight import Weight
from jlora._lowrank import Elementwise, Factored
from jlora._node import Node, Shared


class MaterialisedWarning(UserWarning):
    """An operation got the merged weight ``W + scaling * A B`` because jlora has no rule for it.

    The result is right. Where it is meant, silence the warning:

    Example:
        >>> import warnings
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> apply = jlora.lift(lambda params, x: x @ jnp.sin(params["kernel"]))
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", jlora.MaterialisedWarning)
        ...     print(apply(frozen, lora, jnp.ones((3, 7))).shape)
        (3, 5)
    """


def lift(fn: Callable[..., Any], *, argnums: int = 0, strict: bool = False) -> Callable[..., Any]:
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
        argnums: which positional argument of ``fn`` is the parameter tree; ``frozen`` and ``lora``
            stand there, one after the other, in the lifted function. As in `jax.grad`, a negative
            one counts from the end.
        strict: raise instead of forming a merged weight.

    Returns:
        ``lifted(frozen, lora, *args, dropout_key=None, **kwargs)``, which gives what ``fn`` gives.

    Raises:
        ValueError: when ``argnums`` is no whole number; at the call, when ``lora`` does not fit
            ``frozen``; with ``strict``, when an operation would get a merged weight.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> apply = jax.jit(jlora.lift(lambda params, x: x @ params["kernel"]))
        >>> apply(frozen, lora, jnp.ones((3, 7))).shape
        (3, 5)
    """
    argnums = _position.checked(argnums)
    takes_key = takes_dropout_key(fn)

    @functools.wraps(fn, updated=())
    def lifted(*args, **kwargs):
        key = taken_dropout_key(kwargs, takes_key)
        return run(Compute(_refuse if strict else _Warner()), fn, argnums, args, kwargs, key)

    del lifted.__wrapped__  # jit reads argument names from a signature: it must be this one's
    with contextlib.suppress(TypeError, ValueError):  # a builtin has none
        vars(lifted)["__signature__"] = _signature(fn, argnums)
    lifted.__doc__ = f"``{getattr(fn, '__name__', 'fn')}`` of (frozen, lora), made by jlora.lift."
    return lifted


def run(
    compute: Compute,
    fn: Callable[..., Any],
    argnums: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Any = None,
) -> Any:
    """The lifted function's result on these arguments.

    Raises:
        ValueError: when ``lora`` does not fit ``frozen``.
    """
    at = position(argnums, args)
    frozen, lora = args[at : at + 2]
    if not isinstance(lora, Mapping):
        raise ValueError(
            f"argument {at + 1} of the lifted function is the lora dict that split returns, "
            f"got {type(lora).__name__}"
        )
    leaves, _ = _lora_dict.check(frozen, lora)
    shared = _lora_dict.shared_of(lora)
    call = TracedCall(fn, (*args[:at], frozen, *args[at + 2 :]), kwargs)
    operands = {place: call.leaves[place] for place in call.traced}
    for place, path in enumerate(leaves, start=_paths.count(args[:at])):
        leaf = call.leaves[place]
        if path in lora:
            operands[place] = _adapted(leaf, lora[path], path, shared, key)
        elif is_frozen_leaf(leaf):
            operands[place] = Weight(FrozenBase.from_leaf(leaf, path))
    walk = Walk(compute)
    results = walk(call.jaxpr, list(operands.values()))
    return call.unflatten(walk.merged(results, None, "returned by the function"))


def position(argnums: int, args: tuple[Any, ...]) -> int:
    """Where ``frozen`` stands among the lifted function's arguments; ``lora`` comes next.

    Raises:
        ValueError: when there are too few arguments.
    """
    argnums = _position.checked(argnums)
    try:
        return _position.of_parameters(argnums, len(args) - 1)  # the two are one of fn's own
    except ValueError as error:
        first = argnums - 1 if argnums < 0 else argnums
        raise ValueError(
            f"the lifted function takes (frozen, lora) as arguments {first} and {first + 1}, but "
            f"got {len(args)} positional arguments: {error} of fn"
        ) from None


def _adapted(weight: Any, node: Node, path: str, shared: Shared, key: Any) -> Weight | jax.Array:
    """The value in flight for an adapted leaf; a plain array where a node replaces the leaf."""
    value = node.adapt(plain(weight), shared)
    if not isinstance(value, (Factored, Elementwise)):
        return value
    w = FrozenBase.from_leaf(weight, path) if is_frozen_leaf(weight) else weight
    filter_ = node.input_filter(None if key is None else _paths.key_for(key, path))
    terms = tuple(
        Term(p.a, p.b, p.scaling, p.gain, (Origin(path),), filter=filter_) for p in value.products
    )
    if isinstance(value, Elementwise):
        return Weight(w, terms, form=value.form, why_formed=value.why)
    return Weight(w, terms, value.gain)


DROPOUT_KEY = "dropout_key"
_DROPOUT = inspect.Parameter(DROPOUT_KEY, inspect.Parameter.KEYWORD_ONLY, default=None)


def takes_dropout_key(fn: Callable[..., Any]) -> bool:
    """Whether a function of parameters gets the key itself too."""
    with contextlib.suppress(TypeError, ValueError):  # a builtin has no signature
        return DROPOUT_KEY in inspect.signature(fn).parameters
    return False


def taken_dropout_key(kwargs: dict[str, Any], takes_key: bool) -> Any:
    """The key among a call's arguments, and out of them unless the function itself has it too."""
    return kwargs.get(DROPOUT_KEY) if takes_key else kwargs.pop(DROPOUT_KEY, None)


def _signature(fn: Callable[..., Any], argnums: int) -> inspect.Signature:
    """The lifted function's own: (frozen, lora) in the place of the parameters."""
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    kind = inspect.Parameter.POSITIONAL_ONLY
    if (
        0 <= argnums < len(parameters)
        and parameters[argnums].kind is not parameters[argnums].VAR_POSITIONAL
    ):
        names = ("frozen", "lora")
        before = [parameter.replace(kind=kind) for parameter in parameters[:argnums]]
        pair = [inspect.Parameter(name, kind) for name in names]
        parameters = [*before, *pair, *parameters[argnums + 1 :]]
    elif argnums < 0:  # which one it is, the call says
        raise ValueError("no signature")
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
        self.warned: set[tuple[str, str, str]] = set()

    def __call__(self, use: Use) -> None:
        key = (use.path, use.operation, use.source)
        if use.merged and key not in self.warned:
            self.warned.add(key)
            warnings.warn(_message(use), MaterialisedWarning, stacklevel=2)


def _refuse(use: Use) -> None:
    if use.merged:
        raise ValueError(
            f"strict: {use.path} would be merged for `{use.operation}` at {use.source}: {use.why}"
        )
