"""A model out of a .gguf file: tensors dequantised, tokenizer and template from the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jlora._requires import requires
from jlora.models import _families, _tokenizer
from jlora.models._assemble import assemble
from jlora.models._config import DecoderConfig


def load(path: Path, dtype: Any) -> tuple[dict[str, Any], DecoderConfig, _tokenizer.Tokenizer]:
    """The parameters, configuration and tokenizer of a GGUF file.

    Raises:
        ValueError: when the file is no whole GGUF file, or of a model that jlora does not know.
    """
    gguf = requires("gguf")
    where = str(path)
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise ValueError(f"{where}: no whole GGUF file ({error}). Get the file again") from None
    head = "output.weight"
    config = _families.from_gguf(fields, tied=head not in tensors, where=where)
    family = _families.family_of(config.family, where)
    tokenizer = _tokenizer.from_gguf(fields, where)

    def read(ours: str, name: str) -> np.ndarray:
        tensor = tensors[name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ours in family.interleaved:
            array = _halves(array, config.head_dim)
        return array

    shapes = {name: tuple(map(int, tensor.shape))[::-1] for name, tensor in tensors.items()}
    params = assemble(
        config,
        family.gguf,
        shapes,
        read,
        dtype=dtype,
        ignored=("rope_freqs.weight",),
        where=where,
    )
    return params, config, tokenizer


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... side by side back to two halves."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
