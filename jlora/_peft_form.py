"""What a node is in the words of the PEFT format: one of five forms, or something of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


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
    """Tensors of another type of adapter, for each module.

    What `Node.peft_form` of a method with a `PeftFormat` gives.

    Example:
        >>> import jax.numpy as jnp
        >>> from jlora import extend
        >>> form = extend.Own({"vera_lambda_d": jnp.ones((3, 2))})  # three layers, rank 2
        >>> list(form.tensors)
        ['vera_lambda_d']
    """

    tensors: Mapping[str, Any]  # from the tensor's last name to (*stack, ...), in torch's order


PeftForm = LowRank | Whole | BiasOnB | Rows | Own
