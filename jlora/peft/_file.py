"""An adapter's file while it is read: what was taken out of it, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jlora.peft._layout import Layout
from jlora.peft._naming import Naming

_REPEATED_BIAS = re.compile(r"\.(modules_to_save|original_module)\.(.+\.)?bias$")


class AdapterFile:
    """Tensors are taken out one by one; what is left at the end was not expected."""

    def __init__(
        self,
        settings: dict[str, Any],
        tensors: Mapping[str, np.ndarray],
        layout: Layout,
        dtype: Any,
    ):
        self.settings, self.layout, self.dtype = settings, layout, dtype
        self.naming = Naming(tensors, layout)
        self.tensors = {self.naming.ours(name): tensor for name, tensor in tensors.items()}
        # with bias="all" PEFT writes the biases of modules_to_save three times
        self.left = {name: None for name in self.tensors if not _REPEATED_BIAS.search(name)}
        self.problems: list[str] = []
        if len(self.tensors) < len(tensors):
            self.problems.append("the file has the same tensor under two names")

    def take(self, name: str) -> np.ndarray | None:
        """The tensor of this name, which was expected; None where there is none."""
        self.left.pop(name, None)
        return self.tensors.get(name)
