"""Along which axes of a mesh each weight of the families is cut: one rule for each kind."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from jlora.models._mesh import FSDP, MODEL

# What is cut along fsdp is gathered for its product, a layer at a time; what is cut along model
# stays so, and so does what it computes.
_FSDP, _MODEL, _BOTH, _WHOLE = (FSDP,), (MODEL,), (FSDP, MODEL), ()


class Rule(NamedTuple):
    """How the weights lie whose paths a pattern is found in: the last of their dimensions."""

    pattern: str
    weights: str  # what a person calls them
    dims: tuple[tuple[str, tuple[str, ...]], ...]  # what each dimension is, and its axes
    units: str | None = None  # the field that counts what stays whole along model


# The first that is found counts; a stack's dimensions, and all that none names, are whole.
RULES = (
    Rule(
        r"embed/embedding$",
        "embedding of tokens",
        (("vocabulary", _MODEL), ("width", _FSDP)),
    ),
    Rule(r"/embedding$", "other embeddings", (("rows", _WHOLE), ("width", _FSDP))),
    # what these compute stays cut by heads, or along the width inside the MLP ...
    Rule(
        r"/(q|q_b|kv_b)_proj/kernel$",
        "q, and what latents become",
        (("inputs", _FSDP), ("heads", _MODEL)),
        "heads",
    ),
    Rule(
        r"/(k|v)_proj/kernel$",
        "k, v",
        (("inputs", _FSDP), ("their own heads", _MODEL)),
        "kv_heads",
    ),
    Rule(
        r"/(gate|up|gate_up)_proj/kernel$",
        "gate, up",
        (("inputs", _FSDP), ("outputs", _MODEL)),
    ),
    # ... until these add it up
    Rule(r"/(o|down|out)_proj/kernel$", "o, down", (("inputs", _MODEL), ("outputs", _FSDP))),
    Rule(r"^head/kernel$", "head", (("inputs", _FSDP), ("vocabulary", _MODEL))),
    # whose parts a cut of the outputs would part from one another
    Rule(
        r"/(qkv_proj|in_proj_qkvz)/kernel$",
        "several products in one",
        (("inputs", _BOTH), ("outputs", _WHOLE)),
    ),
    Rule(r"/kernel$", "other kernels", (("inputs", _FSDP), ("outputs", _WHOLE))),
)


def weight_axes(path: str, config: Any) -> list[tuple[tuple[str, ...], int | None]]:
    """For each of a weight's last dimensions: the axes, and how many units it has, if it has some.

    Args:
        path: of the weight.
        config: of the model.
    """
    for rule in RULES:
        if re.search(rule.pattern, path):
            units = getattr(config, rule.units, None) if rule.units else None
            return [(axes, units if axes == _MODEL else None) for _, axes in rule.dims]
    return []
