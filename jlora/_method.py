"""What a method is: a node that `split` makes of a leaf, by the configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from jlora import _placement
from jlora._lowrank import Axes, wide
from jlora._node import Node

if TYPE_CHECKING:
    from jlora._config import LoraConfig
    from jlora._peft_form import PeftFormat


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf that a method shall adapt, as `split` knows it."""

    path: str
    key: jax.Array  # of this leaf alone
    shape: tuple[int, ...]
    axes: Axes
    rank: int  # the highest, where layers of its stack differ
    # float32; () for all alike, else (*stack, rank): zero where a layer has a lower rank
    scaling: jax.Array
    dropout: jax.Array | None  # the rate, float32; None where nothing drops
    init: str
    dtype: str  # of A and B
    options: Mapping[str, Any]
    weight: Any = None  # the array; None unless the method reads it

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.stack)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The sizes of the input dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.inputs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The sizes of the output dimensions."""
        return tuple(self.shape[dim] for dim in self.axes.outputs)

    @property
    def matrices(self) -> jax.Array:
        """The weight as (*stack, inputs, outputs), float32 or wider, whole on every device."""
        axes = self.axes
        moved = jnp.transpose(
            _placement.whole(self.weight), (*axes.stack, *axes.inputs, *axes.outputs)
        )
        sizes = math.prod(self.inputs), math.prod(self.outputs)
        return moved.reshape(*self.stack, *sizes).astype(wide(self.weight.dtype))


class Method(Node):
    """A kind of node that `LoraConfig.method` may name.

    The configuration's ``options`` are this class's own: their names and defaults stand in
    ``options`` here, and what they may be is checked by `problems`.
    """

    targeted: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Any]] = {}
    peft: ClassVar[PeftFormat | None] = None  # beside LoRA's, which `Node.peft_form` fills

    @classmethod
    def problems(cls, config: LoraConfig) -> Iterable[str]:
        """What is wrong with a configuration for this method, one sentence each."""
        return ()

    @classmethod
    def reads_weight(cls, init: str) -> bool:
        """Whether `start` needs the leaf's weight."""
        return False

    @classmethod
    def largest_rank(cls, inputs: int, outputs: int) -> int | None:
        """The largest rank that makes sense for a matrix of these sizes; None: any."""
        return min(inputs, outputs)

    @classmethod
    def shared(cls, leaves: list[Leaf], key: jax.Array) -> dict[str, Node]:
        """The factors that the nodes of these leaves share, by name: `jlora.extend.SharedFactor`s.

        As large as the largest leaf needs; ``key`` folded with their names is what they start from.
        """
        return {}

    @classmethod
    def start(cls, leaf: Leaf) -> tuple[Node, Any]:
        """The node of a leaf at its start, and the weight that stays frozen if it is another.

        With the two the adapted function is the base function.
        """
        raise NotImplementedError
