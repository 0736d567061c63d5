"""What leaves that train whole, and rows of tables, are in PEFT."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jlora._peft_form import Rows, Whole
from jlora.peft import _names, _rows
from jlora.peft._layout import Layout, Parameter
from jlora.peft._pairs import Pair
from jlora.peft._short_names import short_ends


class WholeLeafWriter:
    """Tensors of whole parameters and of rows.

    Attributes:
        problems: what this format can't hold.
        tied: whether something is written for the embedding and the head alike.
    """

    def __init__(
        self, wholes: Mapping[str, Whole], rows: Mapping[str, Rows], layout: Layout, dtype: str
    ):
        self._wholes, self._tables, self._layout, self._dtype = wholes, rows, layout, dtype
        self.problems: list[str] = []
        self.tied = False
        self._values: dict[str, np.ndarray] = {}

    def rows(self, tensors: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """Adds the rows as they become, which is what PEFT keeps; the tokens by module."""
        tokens: dict[str, list[int]] = {}
        for path, form in self._tables.items():
            [parameter] = self._layout.of_leaf(path)
            table = np.asarray(self._layout.leaves[path].base())
            rows = np.take(table, form.tokens, axis=form.vocabulary).astype(np.float32)
            rows = rows.T if form.vocabulary == 1 else rows
            rows = rows + np.asarray(form.delta)
            tensors[f"{parameter.module}{_rows.SUFFIX}"] = rows.astype(jnp.dtype(self._dtype))
            tokens[parameter.module] = list(form.tokens)
        return tokens

    def wholes(
        self, tensors: dict[str, np.ndarray], pairs: Mapping[str, Pair]
    ) -> tuple[list[str], str]:
        """Adds the leaves that trained whole; ``modules_to_save`` and ``bias``."""
        adapted = {self._layout.parameters[name].module for name in pairs}
        biases: list[str] = []
        saved: list[str] = []
        for module in self._layout.units:
            parameters = self._layout.of_unit(module)
            as_one = module == self._layout.saved_whole
            whole = [p for p in parameters if self._is_whole(p)]
            if not whole:
                continue
            beside = len(parameters) > 1 or module in adapted
            if all(p.name == "bias" for p in whole) and beside and not as_one:
                biases.append(module)
                inside = ".base_layer" if module in adapted else ""
                tensors[f"{module}{inside}.bias"] = whole[0].in_torch(self._matrices)
                continue
            if adapted & {p.module for p in parameters}:
                self.problems.append(f"{module} is adapted and trained whole: PEFT has one of both")
            if any(other.startswith(f"{module}.") for other in self._layout.units):
                self.problems.append(
                    f"{whole[0].full_name} stands beside the modules of {module}: PEFT trains it "
                    "only with all of them"
                )
            saved.append(module)
            for parameter in parameters:
                tensors[parameter.full_name] = parameter.in_torch(self._matrices)
            if module == self._layout.tied:
                self.tied = True
                tensors[f"{_names.HEAD}.weight"] = tensors[f"{module}.weight"]
        others = [module for module in self._layout.units if module not in saved]
        others += self._layout.elsewhere
        if not biases:
            return short_ends(saved, others), "none"
        return short_ends(saved, others), "lora_only" if set(biases) <= adapted else "all"

    def _is_whole(self, parameter: Parameter) -> bool:
        return any(part.leaf.path in self._wholes for part in parameter.parts)

    def _matrices(self, path: str) -> np.ndarray:
        """The matrices of a leaf: its trained value, or the frozen one."""
        if path not in self._values:
            leaf = self._layout.leaves[path]
            value = self._wholes[path].value if path in self._wholes else leaf.base()
            self._values[path] = leaf.matrices(value)
        return self._values[path]
