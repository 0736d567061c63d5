"""What a node is in the words of the PEFT format: one of five forms, or something of its own."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jlora._config import LoraConfig
    from jlora._method import Leaf
    from jlora._node import Node, Shared


@dataclasses.dataclass(frozen=True)
class LowRank:
    """``lora_A`` and ``lora_B``, and with magnitudes DoRA's vector."""

    a: Any  # (*stack, *in, rank)
    b: Any  # (*stack, rank, *out)
    scaling: Any  # () or (*stack, rank)
    magnitude: Any = None  # (*stack, *out)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A parameter of ``modules_to_save``, or a bias that trains."""

    value: Any  # in the leaf's shape


@dataclasses.dataclass(frozen=True)
class BiasOnB:
    """``lora_bias``: the bias of a module's ``lora_B``."""

    delta: Any  # in the bias's shape
    scaling: Any


@dataclasses.dataclass(frozen=True)
class Rows:
    """``trainable_token_indices``: rows of a table that train."""

    delta: Any  # (rows, *the table's other dimensions)
    tokens: tuple[int, ...]
    vocabulary: int  # the table's dimension of rows


@dataclasses.dataclass(frozen=True)
class Own:
    """Tensors of another type of adapter, for each module."""

    tensors: Mapping[str, Any]  # from the tensor's last name to (*stack, ...), in torch's order


PeftForm = LowRank | Whole | BiasOnB | Rows | Own


class PeftFormat(abc.ABC):
    """How adapters of a method are written in the PEFT format, where PEFT has the method.

    `jlora.peft` finds the modules, slices stacks into layers and writes and checks the files; this
    says what stands in them. Names of tensors are the last part of PEFT's, after the module's.
    """

    peft_type: str  # what ``peft_type`` says in ``adapter_config.json``
    defaults: Mapping[str, Any]  # every field that is honoured, with PEFT's default

    @abc.abstractmethod
    def settings(self, config: LoraConfig, shared: Shared) -> dict[str, Any]:
        """The fields of ``adapter_config.json`` that a configuration gives, beside the targets."""

    @abc.abstractmethod
    def config(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `jlora.LoraConfig` that such a file gives, beside the targets.

        Raises:
            ValueError: when it asks for what the method does not have.
        """

    def shared_tensors(self, shared: Shared) -> dict[str, Any]:
        """The tensors that all modules share, by their names after ``base_model.``."""
        return {}

    def read_shared(self, tensors: Mapping[str, Any]) -> dict[str, Node]:
        """The shared factors, by name, out of the tensors that stand beside the model's."""
        return {}

    @abc.abstractmethod
    def tensors(self, leaf: Leaf) -> dict[str, tuple[int, ...]]:
        """The names of a module's tensors, and their shapes for one layer of this leaf."""

    @abc.abstractmethod
    def node(self, leaf: Leaf, tensors: Mapping[str, Any]) -> Node:
        """The node of a leaf; each tensor as (*stack, ...)."""
