"""All kinds of nodes by name, and what makes one of a class: a pytree that goes anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import serialization

from jlora._method import Method
from jlora._node import Node
from jlora._static import array_fields, from_json, static_fields, to_json

NODES: dict[str, type[Node]] = {}

Class = TypeVar("Class", bound=type[Node])


def register(kind: str) -> Callable[[Class], Class]:
    """Registers a node class, a frozen dataclass, under a name.

    The class becomes a pytree whose children are its fields without ``metadata={"static": True}``.
    It is known by the name in `LoraConfig.method` and in saved adapters, and goes through
    `flax.serialization` and `jax.export`. Static fields are numbers, texts, None, tuples of these,
    or `jlora.Axes`.

    Args:
        kind: the name, the same at each start of the program: files speak of it.

    Returns:
        what registers a class, and gives it back.

    Raises:
        ValueError: when another class has the name, or this one is no dataclass, or says that
            targets may be split into it (``targeted``) and is no `jlora.extend.Method`, or that
            something trains, decays or is a factor that is none of its arrays.

    Example:
        >>> import dataclasses
        >>> import jax
        >>> import jlora
        >>> @jlora.extend.register("mine")
        ... @dataclasses.dataclass(frozen=True)
        ... class MyWeight(jlora.extend.Method):
        ...     scale: jax.Array  # and the functions that `Method` and `Node` name
        >>> MyWeight.kind
        'mine'
    """

    def add(cls: Class) -> Class:
        if not dataclasses.is_dataclass(cls):
            raise ValueError(f"{cls.__name__} is no dataclass: put @dataclass(frozen=True) on it")
        if cls.targeted and not issubclass(cls, Method):
            raise ValueError(
                f"{cls.__name__} is targeted, but no jlora.extend.Method, which says how a leaf "
                "starts: derive it from that, or leave targeted False"
            )
        said = [cls.trainable, cls.decayed, cls.factors]  # some nodes say it for each instance
        named = {name for names in said if isinstance(names, tuple) for name in names}
        if unknown := named.difference(array_fields(cls)):
            raise ValueError(
                f"{cls.__name__} says that {', '.join(sorted(unknown))} trains or is a factor: "
                f"expected names of its arrays, {', '.join(array_fields(cls))}"
            )
        other = NODES.get(kind)
        if other is not None and _place(other) != _place(cls):
            raise ValueError(f"{kind!r} is registered already, for {_place(other)}")
        cls.kind = kind
        jax.tree_util.register_dataclass(
            cls, data_fields=array_fields(cls), meta_fields=static_fields(cls)
        )
        serialization.register_serialization_state(cls, _to_state, _from_state, override=True)
        _register_export(cls)
        NODES[kind] = cls
        return cls

    return add


def kind_of(method: str | type[Node]) -> str:
    """The name of a class that is registered, or the name itself.

    Raises:
        ValueError: when the class is not registered.
    """
    if isinstance(method, str):
        return method
    kind = getattr(method, "kind", None)
    if kind is None or NODES.get(kind) is not method:
        raise ValueError(f"{method!r} is not registered: put @jlora.extend.register(name) on it")
    return kind


def methods() -> list[str]:
    """The names that `LoraConfig.method` may have."""
    return [kind for kind, cls in NODES.items() if cls.targeted]


def node_class(kind: str) -> type[Node]:
    """The class of this name.

    Raises:
        ValueError: when there is none, with what to do.
    """
    if kind in NODES:
        return NODES[kind]
    raise ValueError(
        f"no kind of node is registered as {kind!r}: import the module that has "
        f"@jlora.extend.register({kind!r}) first. Known are {', '.join(NODES)}"
    )


def method_class(kind: str) -> type[Method]:
    """The class of a method that `LoraConfig.method` may name.

    Raises:
        ValueError: when none of this name is registered.
    """
    cls = node_class(kind)
    if not issubclass(cls, Method):
        raise ValueError(f"{kind!r} is no method: expected {' or '.join(methods())}")
    return cls


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _to_state(node: Node) -> dict[str, Any]:
    """The array fields that are there, in a dict of their own: Flax changes it in place."""
    return {
        name: serialization.to_state_dict(value)
        for name in array_fields(type(node))
        if (value := getattr(node, name)) is not None
    }


def _from_state(node: Node, state: dict[str, Any]) -> Node:
    names = [name for name in array_fields(type(node)) if getattr(node, name) is not None]
    if problems := [f"{name} is missing" for name in names if name not in state] + [
        f"{name} is not expected" for name in state if name not in names
    ]:
        raise ValueError(
            f"{', '.join(problems)}: the state of a {type(node).__name__} has the fields "
            f"{', '.join(names)}, at {serialization.current_path()}"
        )
    return dataclasses.replace(
        node,  # type: ignore
        **{
            name: serialization.from_state_dict(getattr(node, name), state[name], name=name)
            for name in names
        },
    )


def _register_export(cls: type[Node]) -> None:
    def pack(static: Any) -> bytes:
        return json.dumps([to_json(value) for value in static]).encode()

    def unpack(packed: bytes) -> Any:
        return tuple(from_json(value) for value in json.loads(packed))

    try:
        jax.export.register_pytree_node_serialization(
            cls,
            serialized_name=f"jlora.{cls.kind}",
            serialize_auxdata=pack,
            deserialize_auxdata=unpack,
        )
    except ValueError:
        # registered before, as when a cell of a notebook runs again: what is exported from now on
        # is of the class that was there first
        return
