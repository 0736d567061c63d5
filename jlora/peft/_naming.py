"""Names of tensors in adapter files of several tools, as PEFT and the model have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jlora._wrapped_names import bare
from jlora.peft._layout import Layout

PREFIX = "base_model.model."
# An adapter's own name, which PEFT leaves out of files: ``lora_A.default.weight``.
_NAMED = (
    re.compile(
        r"(?P<kept>\.lora_[AB])\.(?!weight$|bias$)(?P<name>[\w-]+)(?P<end>\.(weight|bias))$"
    ),
    re.compile(r"(?P<kept>\.lora_embedding_[AB])\.(?P<name>[\w-]+)(?P<end>)$"),
    re.compile(
        r"(?P<kept>\.lora_magnitude_vector)\.(?!weight$)(?P<name>[\w-]+)(?P<end>(\.weight)?)$"
    ),
    re.compile(r"(?P<kept>)\.modules_to_save\.(?P<name>[\w-]+)(?P<end>\.(weight|bias))$"),
    re.compile(r"(?P<kept>\.trainable_tokens_delta)\.(?P<name>[\w-]+)(?P<end>)$"),
)
_MAGNITUDE = ".lora_magnitude_vector"


def as_peft(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors by their names within the model, and what is wrong with those names."""
    found: dict[str, np.ndarray] = {}
    adapters: set[str] = set()
    problems: list[str] = []
    for own, tensor in tensors.items():
        name = own
        while name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
        for pattern in _NAMED:
            if match := pattern.search(name):
                adapters.add(match["name"])
                name = name[: match.start()] + match["kept"] + match["end"]
        name = name.replace(f"{_MAGNITUDE}.weight", _MAGNITUDE)  # as it was once
        if name.endswith(_MAGNITUDE) and 1 in tensor.shape[:2] and tensor.ndim == 2:
            tensor = tensor.reshape(-1)  # a row or a column, which other tools keep
        if name in found:
            problems.append(f"{own}: the file has the same tensor under another name as well")
        found[name] = tensor
    if len(adapters) > 1:
        problems.append(f"it holds several adapters ({', '.join(sorted(adapters))}): expected one")
    return found, problems


class Naming:
    """The model's names for a file's modules, and back: they differ in wrappers alone."""

    def __init__(self, names: Iterable[str], layout: Layout):
        self._ours: dict[str, str] = {}
        self._theirs: dict[str, str] = {}
        if not layout.is_language_model:
            return
        for module in layout.modules:
            short = bare(module)
            self._ours[short.partition(".")[0]] = module.removesuffix(short)
        for name in names:
            short = bare(name)
            self._theirs.setdefault(short.partition(".")[0], name.removesuffix(short))

    def ours(self, name: str) -> str:
        """A tensor's name with the model's own wrapper."""
        short = bare(name)
        prefix = self._ours.get(short.partition(".")[0])
        return name if prefix is None else prefix + short

    def theirs(self, name: str) -> str:
        """A module's or parameter's name as the file has it: what its patterns are held against."""
        short = bare(name)
        first = short.partition(".")[0]
        if first not in self._ours:
            return name
        return self._theirs.get(first, self._ours[first]) + short
