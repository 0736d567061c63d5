"""How adapters of a method are written in the PEFT format, where PEFT has a format for it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from jlora._leaf import Leaf
from jlora._node import Node, Shared


class PeftFormat(abc.ABC):
    """How adapters of a method are written in the PEFT format, where PEFT has the method.

    `jlora.peft` finds the modules, slices stacks into layers and writes and checks the files; this
    says what stands in them. Names of tensors are the last part of PEFT's, after the module's.

    Example:
        >>> import jlora
        >>> class Plain(jlora.extend.PeftFormat):  # LoRA's, without its settings but the rank
        ...     peft_type = "LORA"
        ...     defaults = {"r": 8}
        ...     def settings(self, config, shared):
        ...         return {"r": config.rank}
        ...     def config(self, settings):
        ...         return {"rank": settings["r"]}
        ...     def tensors(self, leaf):
        ...         rank, shape = leaf.rank, (*leaf.inputs, *leaf.outputs)
        ...         return {"lora_A": (rank, shape[0]), "lora_B": (shape[1], rank)}
        ...     def node(self, leaf, tensors):
        ...         a, b = tensors["lora_A"].mT, tensors["lora_B"].mT
        ...         return jlora.LoraWeight(a, b, leaf.scaling, leaf.axes)
        >>> Plain().config({"r": 4})
        {'rank': 4}
    """

    peft_type: str  # what ``peft_type`` says in ``adapter_config.json``
    defaults: Mapping[str, Any]  # every field that is honoured, with PEFT's default

    @abc.abstractmethod
    def settings(self, config: Any, shared: Shared) -> dict[str, Any]:
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
        """The node of a leaf; each tensor as ``(*stack, ...)``."""
