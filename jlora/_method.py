"""What a method is: a node that `split` makes of a leaf, by the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax

from jlora._leaf import Leaf
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._peft_format import PeftFormat


class Method(Node):
    """A kind of node that `LoraConfig.method` may name.

    The configuration's ``options`` are this class's own: their names and defaults stand in
    ``options`` here, and what they may be is checked by `problems`. An ``init`` that is neither the
    default nor in ``inits`` is refused: it would change nothing.

    Example:
        >>> import dataclasses
        >>> import jlora
        >>> @jlora.extend.register("lora_fa")  # A stays as it starts
        ... @dataclasses.dataclass(frozen=True)
        ... class LoraFa(jlora.LoraWeight):
        ...     trainable = ("b",)
        ...     @classmethod
        ...     def start(cls, leaf):
        ...         node, frozen = super().start(leaf)
        ...         return cls(**vars(node)), frozen
        >>> issubclass(LoraFa, jlora.extend.Method)
        True
        >>> jlora.LoraConfig(targets="kernel", method=LoraFa).method
        'lora_fa'
    """

    targeted: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Any]] = {}
    # patterns of `LoraConfig.init` that `start` reads; the default is every method's own start
    inits: ClassVar[tuple[str, ...]] = ()
    peft: ClassVar[PeftFormat | None] = None  # beside LoRA's, which `Node.peft_form` fills

    @classmethod
    def problems(cls, config: Any) -> Iterable[str]:
        """What is wrong with a configuration for this method, one sentence each."""
        return ()

    @classmethod
    def reads_weight(cls, init: str) -> bool:
        """Whether `start` needs the leaf's weight."""
        return False

    @classmethod
    def moves_weight(cls, init: str) -> bool:
        """Whether `start` takes weight out of the frozen tree: unless told, if it reads it."""
        return cls.reads_weight(init)

    @classmethod
    def largest_rank(cls, inputs: int, outputs: int) -> int | None:
        """The largest rank that makes sense for a matrix of these sizes; None: any."""
        return min(inputs, outputs)

    @classmethod
    def unfit(cls, shape: tuple[int, ...], axes: Axes, options: Mapping[str, Any]) -> str | None:
        """Why it can't adapt a leaf of this shape, or None: `split` names all such leaves."""
        return None

    @classmethod
    def shared(cls, leaves: list[Leaf], key: jax.Array) -> dict[str, Node]:
        """The factors that the nodes of these leaves share, by name: each a `SharedFactor`.

        As large as the largest leaf needs; ``key`` folded with their names is what they start from.
        """
        return {}

    @classmethod
    def start(cls, leaf: Leaf) -> tuple[Node, Any]:
        """The node of a leaf at its start, and the weight that stays frozen if it is another.

        With the two the adapted function is the base function.

        Raises:
            NotImplementedError: unless a class has one of its own.
        """
        raise NotImplementedError(f"{cls.__name__} has no start: what is its node at the start?")

    def taken_from(self, weight: jax.Array) -> jax.Array:
        """What stays frozen of ``weight`` beside this node, where `start` took part of it.

        With it a run that is resumed forms the frozen weight again from the start that it kept.

        Raises:
            NotImplementedError: unless a class has one of its own.
        """
        raise NotImplementedError
