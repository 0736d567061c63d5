"""Names of tensors without what wrappers put before them: one name for each parameter.

A saved wrapper adds a first part (``language_model.``, ``module.``), a bare model leaves one out,
some conversions double it. None of them says anything of the parameter.
"""

from __future__ import annotations

_WRAPPERS = (
    *("module.", "_orig_mod.", "language_model.", "model.", "transformer."),
    *("bert.", "roberta."),
)


def bare(name: str) -> str:
    """The name without any wrapper's part: ``layers.0.self_attn.q_proj.weight``."""
    while wrapper := next((each for each in _WRAPPERS if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name
