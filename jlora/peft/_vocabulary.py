"""What an adapter asks of its base's vocabulary: more rows, a head apart from the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jlora.peft import _gguf, _names, _own_format, _read, _tied, _whole_leaves
from jlora.peft._file import AdapterFile
from jlora.peft._load import located


def vocabulary(directory: str | Path, model: Any) -> Any:
    """The `jlora.models.Vocabulary` that the model needs before the adapter fits it.

    PEFT saves the whole tables where tokens were added to them: the rows beyond the model's own
    are its base's as well. It adapts a tied head or its embedding alone where it is told to: the
    two are then no longer one.

    Args:
        directory: as for `load`.
        model: a `jlora.models.Model`.

    Raises:
        ValueError: when the files can't be read, or have more rows for A than for the table.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> from jlora import models
        >>> config = models.DecoderConfig(
        ...     vocabulary=3, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8,
        ...     max_length=64,
        ... )
        >>> tokens = jnp.zeros((1, 2), int)
        >>> params = models.Decoder(config).init(jax.random.key(0), tokens)["params"]
        >>> model = models.Model(params, config, tokenizer=None, name="tiny")
        >>> of_adapter = jlora.LoraConfig(targets="q_proj/kernel", rank=2)
        >>> axes = jlora.trace_axes(model.apply, params, tokens)
        >>> _, lora = jlora.split(params, of_adapter, jax.random.key(0), axes=axes)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.save(folder, lora, of_adapter, model)
        ...     jlora.peft.vocabulary(folder, model)  # no tokens were added
        Vocabulary(rows={}, untied=False)
    """
    from jlora.models._vocabulary import EMBED, HEAD, Vocabulary

    directory = located(directory)
    if _gguf.is_one(directory) or _own_format.method_in(directory) is not None:
        return Vocabulary()
    settings, tensors = _read.contents(directory)
    file = AdapterFile(settings, tensors, _names.layout(model, None, None), None)
    untied = _tied.differing(file) is not None
    embedding = model.stored[EMBED].name.removesuffix(".weight")
    rows: dict[str, np.ndarray] = {}
    now = model.config.vocabulary
    found = _added(file, embedding, now)
    if found is not None:
        rows[EMBED] = found
    if HEAD in model.stored:
        if (head := _added(file, _names.HEAD, now)) is not None:
            rows[HEAD] = head
        elif found is not None:
            raise ValueError(f"{directory}: {embedding} has more rows than {_names.HEAD}")
    elif untied and model.config.tied and found is not None:
        head = _added(file, _names.HEAD, now)
        rows[HEAD] = found if head is None else head
    return Vocabulary(rows, untied)


def _added(file: AdapterFile, module: str, now: int) -> np.ndarray | None:
    """The rows of a module's table beyond those of the model."""
    for name in (f"{module}{_whole_leaves.BASE_COPY}", f"{module}.weight"):
        table = file.tensors.get(name)
        if table is not None and table.ndim == 2 and len(table) > now:
            return table[now:]
    return None
