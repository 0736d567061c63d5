"""Names of tensors without what wrappers put before them: one name for each parameter.

A saved wrapper adds a first part (``language_model.``, ``module.``), a bare model leaves one out,
some conversions double it. None of them says anything of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jlora.models._files._torch_tensors import Stored

_WRAPPERS = ("module.", "_orig_mod.", "language_model.", "model.", "transformer.")


def bare(name: str) -> str:
    """The name without any wrapper's part: ``layers.0.self_attn.q_proj.weight``."""
    while wrapper := next((each for each in _WRAPPERS if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name


def of_family(names: Iterable[str], leaves: Mapping[str, Stored]) -> dict[str, list[str]]:
    """The names that a file has for each of the family's; what is not the family's stays as it is.

    More than one stands for a parameter that the file holds twice.
    """
    prefixes = {}
    for leaf in leaves.values():
        short = bare(leaf.name)
        prefixes[short.partition(".")[0]] = leaf.name.removesuffix(short)
    found: dict[str, list[str]] = {}
    for name in names:
        short = bare(name)
        prefix = prefixes.get(short.partition(".")[0])
        found.setdefault(name if prefix is None else prefix + short, []).append(name)
    return found
