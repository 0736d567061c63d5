"""What differs between JAX releases, and how one equation of a jaxpr is run again.

Written against JAX 0.10 (scan counts its operands in ``num_consts`` and ``num_carry``; a Jaxpr and
a ClosedJaxpr are two types) and 0.12 (``ft_in`` and ``ft_out`` instead; one type). What tells
operands apart is therefore read from shapes, which no release has changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var


@contextlib.contextmanager
def site(eqn: Any):
    """Run under an equation's name scope, source line and context (mesh, compute type)."""
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with (
        source_info_util.user_context(eqn.source_info.traceback, name_stack=names),
        eqn.ctx.manager,
    ):
        yield


def bind(eqn: Any, operands: list[Any]) -> list[Any]:
    """The results of an equation on other operands; call it inside `site`."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions = ()
    if isinstance(params, tuple):  # before the sub-functions moved into the parameters
        functions, params = params
    results = eqn.primitive.bind(*functions, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """A jaxpr without its constants, and the constants (0.12 has one type for both)."""
    consts = list(getattr(jaxpr, "consts", ()))
    return getattr(jaxpr, "jaxpr", jaxpr), consts


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried.

    A scanned operand has one dimension more outside than inside, and so has a stacked result.
    """
    jaxpr, _ = open_jaxpr(eqn.params["jaxpr"])
    pairs = zip(eqn.invars, jaxpr.invars, strict=True)
    scanned = sum(len(outer.aval.shape) != len(inner.aval.shape) for outer, inner in pairs)
    pairs = zip(eqn.outvars, jaxpr.outvars, strict=True)
    carried = sum(len(outer.aval.shape) == len(inner.aval.shape) for outer, inner in pairs)
    return len(eqn.invars) - scanned - carried, carried


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _folders(*packages: str) -> tuple[str, ...]:
    """Where these packages lie, those that are installed."""
    specs = [importlib.util.find_spec(name) for name in packages]
    places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return tuple(os.path.join(place, "") for place in places)


_OF_JAX = _folders("jax", "jaxlib")
_HIDDEN = (f"{os.sep}functools.py", f"{os.sep}contextlib.py")


@functools.cache
def _libraries() -> tuple[str, ...]:
    return _folders("flax", "haiku", "equinox", "optax", "einops", "jaxtyping")


def source(eqn: Any) -> str:
    """Where the model's own code asked for this equation: ``file:line (function)``.

    The innermost frame outside JAX and the module libraries, or a library's if there is no other.
    """
    library = None
    for frame in getattr(eqn.source_info.traceback, "frames", ()):
        name = frame.file_name
        if name.startswith((_HERE, "<frozen", *_OF_JAX)) or name.endswith(_HIDDEN):
            continue
        place = f"{os.path.basename(name)}:{frame.line_num} ({frame.function_name})"
        if not name.startswith(_libraries()):
            return place
        library = library or place
    return library or source_info_util.summarize(eqn.source_info)


def is_jax_function(jaxpr: Any) -> bool:
    """Whether the body of a jit is one of JAX's own functions (``jnp.var``, ``nn.softmax``).

    It is traced once for all callers, so that its equations tell of the first one's lines.
    """
    debug_info = getattr(open_jaxpr(jaxpr)[0], "debug_info", None)
    where = getattr(debug_info, "func_filename", None) or ""
    return where.startswith(_OF_JAX)


def counted(shape: Any) -> tuple[int, ...]:
    """The sizes to count operations by: one that is a symbol (`jax.export`) is taken for 1024."""
    return tuple(size if isinstance(size, int) else 1024 for size in shape)


def is_array(value: Any) -> bool:
    """Whether a leaf is traced: arrays, tracers, numpy arrays and scalars, shape structs."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_sharding(value: Any) -> bool:
    """Whether a jit's sharding entry says something (an unspecified one is a private type)."""
    return isinstance(value, jax.sharding.Sharding)


def partition(values: list[Any], *sizes: int) -> list[list[Any]]:
    """Consecutive runs of the given sizes, and the rest."""
    rest = iter(values)
    return [list(itertools.islice(rest, size)) for size in sizes] + [list(rest)]
