"""`trace_axes`: how a function uses each of its weights, read off its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jlora import _paths
from jlora._lift import _position
from jlora._lift._look import Look, Seen
from jlora._lift._traced_call import TracedCall
from jlora._lift._walk import Walk
from jlora._lift._watched import Watched, WatchedBase
from jlora._lift._weight import Weight
from jlora._lora_dict import of_leaves
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._traced_axes import TracedAxes


def trace_axes(fn: Callable[..., Any], *args: Any, argnums: int = 0, **kwargs: Any) -> TracedAxes:
    """How ``fn(params, *args)`` uses each weight: which dimensions are in, out and stacked.

    Runs ``fn`` abstractly (no FLOPs; ``jax.ShapeDtypeStruct`` will do for any array) and reads off
    each product: dimensions that it contracts are inputs, those that it keeps are outputs, those
    that a scan or a batch runs over are stacks. In a lookup the chosen dimension is the input. A
    weight used twice, as a tied embedding, is read by its first use; a second use that only swaps
    inputs and outputs is as cheap.

    Every weight that products use is linear for ``targets="all-linear"``, but tables that rows are
    looked up in, output heads (the product with the weight alone makes a result of ``fn`` that no
    other product reads) and what `lift` would get merged at every use.

    Args:
        fn: a function of a parameter tree.
        *args: its arguments, the parameters among them.
        argnums: which of them the parameters are, as in `lift`.
        **kwargs: keyword arguments of ``fn``.

    Returns:
        A mapping from the leaf's path to its `Axes`, to be passed to `split`; leaves that no
        product uses (biases, scales) are not in it, and ``.unclear`` explains the doubtful ones.

    Raises:
        ValueError: when ``argnums`` is the place of no positional argument.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> params = {"heads": jnp.ones((7, 2, 3))}
        >>> def model(params, x):
        ...     return jnp.einsum("bi,iho->bho", x, params["heads"])
        >>> axes = jlora.trace_axes(model, params, jnp.ones((4, 7)))
        >>> axes["heads"]
        Axes(inputs=(0,), outputs=(1, 2), stack=())
        >>> config = jlora.LoraConfig(targets="heads", rank=2)
        >>> frozen, lora = jlora.split(params, config, jax.random.key(0), axes=axes)
    """
    at = _position.of_parameters(_position.checked(argnums), len(args))
    leaves, _ = _paths.flatten(args[at])
    call = TracedCall(fn, args, kwargs)
    paths = dict(enumerate(leaves, start=_paths.count(args[:at])))
    look = Look()
    operands = [
        _watched(paths[at], leaves[paths[at]], look) if at in paths else _data(call.leaves[at])
        for at in call.traced
    ]
    walk = Walk(look)
    results = walk.merged(walk(call.jaxpr, operands), None, "returned by the function")
    return _described(look, {path: np.shape(leaf) for path, leaf in leaves.items()}, results)


def _watched(path: str, leaf: Any, look: Look) -> Weight:
    shape = np.shape(leaf)
    one = Watched(path, tuple((dim,) for dim in range(len(shape))), shape)
    return Weight(WatchedBase(shape, leaf.dtype, (one,), look.plain))


def _data(leaf: Any) -> Seen:
    return Seen(np.shape(leaf), leaf.dtype, data=True)


def _described(look: Look, shapes: dict[str, tuple[int, ...]], results: list[Any]) -> TracedAxes:
    found = {path: look.found[path] for path in shapes if path in look.found}
    wide = {path for path, shape in shapes.items() if sum(size != 1 for size in shape) >= 2}
    other = look.other | dict.fromkeys(wide - look.met, "no operation was seen to use it")
    heads = look.heads(results)
    reasons = [
        (look.looked_up, "rows are looked up in it"),
        (heads, "its product alone makes a result of the function: an output head"),
        (look.merged_at.keys() - look.multiplied, "lift would merge it: {}"),
        (found.keys() - look.multiplied, "no product uses it"),
    ]
    left_out = {
        path: next(why for paths, why in reasons if path in paths).format(
            look.merged_at.get(path, "")
        )
        for path in found
        if any(path in paths for paths, _ in reasons)
    }
    return TracedAxes(
        axes=found,
        unclear={path: other[path] for path in shapes if path in other.keys() - found.keys()},
        linear=frozenset(found.keys() - left_out.keys()),
        left_out=left_out,
        looked_up={path: tuple(sorted(dims)) for path, dims in look.looked_up.items()},
    )


def told_left_out(left_out: Mapping[str, str]) -> list[str]:
    """What ``"all-linear"`` leaves out and why, as a line of text, if there is anything."""
    if not left_out:
        return []
    each = ", ".join(f"{path} ({why})" for path, why in left_out.items())
    return [f"left out by all-linear: {each}"]


def adapted_otherwise(axes: TracedAxes, lora: Mapping[str, Node]) -> dict[str, str]:
    """From each leaf that is not adapted as the function uses it to how it does use it."""
    otherwise = {}
    for path, node in of_leaves(lora).items():
        its_axes = getattr(node, "axes", None)
        if not (node.targeted and isinstance(its_axes, Axes)) or path in axes.unclear:
            continue
        if path not in axes:
            otherwise[path] = "no product uses it: a stack of vectors?"
        elif axes[path] != its_axes:
            otherwise[path] = f"it is {axes[path]}, not {its_axes}"
    return otherwise


def told_otherwise(otherwise: Mapping[str, str]) -> list[str]:
    """What is not adapted as it is used, and what to do, as a line, if there is anything."""
    if not otherwise:
        return []
    each = ", ".join(f"{path} ({why})" for path, why in otherwise.items())
    give = "give split axes=jlora.trace_axes(fn, params, *args)"
    return [f"not adapted as the function uses them ({give}): {each}"]
