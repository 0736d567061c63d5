"""Along which axes of a mesh each weight of the families is cut: one rule for each kind."""

from __future__ import annotations

import re
from typing import Any

from jlora.models._mesh import FSDP, MODEL

# What is cut along fsdp is gathered for its product, a layer at a time; what is cut along model
# stays so, and so does what it computes.
_FSDP, _MODEL, _BOTH, _WHOLE = (FSDP,), (MODEL,), (FSDP, MODEL), ()
# (pattern, the axes of the last dimensions, the field that counts units which stay whole). The
# first that is found counts; a stack's dimensions, and all that none names, are whole.
RULES = (
    # (vocabulary, width)
    (r"embed/embedding$", (_MODEL, _FSDP), None),
    (r"/embedding$", (_WHOLE, _FSDP), None),
    # (in, out): what they compute stays cut by heads, or along the width inside the MLP ...
    (r"/(q|q_b|kv_b)_proj/kernel$", (_FSDP, _MODEL), "heads"),
    (r"/(k|v)_proj/kernel$", (_FSDP, _MODEL), "kv_heads"),
    (r"/(gate|up|gate_up)_proj/kernel$", (_FSDP, _MODEL), None),
    # ... until these add it up
    (r"/(o|down|out)_proj/kernel$", (_MODEL, _FSDP), None),
    (r"^head/kernel$", (_FSDP, _MODEL), None),
    # several in one, whose parts a cut of the outputs would part from one another
    (r"/(qkv_proj|in_proj_qkvz)/kernel$", (_BOTH, _WHOLE), None),
    (r"/kernel$", (_FSDP, _WHOLE), None),
)


def weight_axes(path: str, config: Any) -> list[tuple[tuple[str, ...], int | None]]:
    """For each of a weight's last dimensions: the axes, and how many units it has, if it has some.

    Args:
        path: of the weight.
        config: of the model.
    """
    for pattern, axes, counted in RULES:
        if re.search(pattern, path):
            units = getattr(config, counted, None) if counted else None
            return [(each, units if each == _MODEL else None) for each in axes]
    return []
