"""How many labels the head has that an adapter brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jlora.peft import _gguf, _own_format, _read
from jlora.peft._load import located


def labels(directory: str | Path, model: Any) -> tuple[str, ...]:
    """Names for the labels of the head that the adapter trained whole; none where it trained none.

    PEFT does not save their names: they are ``LABEL_0`` and so on, or the model's own where it has
    as many. `jlora.models.with_classifier` gives the model such a head before the adapter is
    loaded.

    Args:
        directory: as for `load`.
        model: a `jlora.models.Model` or an `EncoderModel`.

    Raises:
        ValueError: when the files can't be read.

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
        >>> base = models.Model(params, config, tokenizer=None, name="tiny")
        >>> model = models.with_classifier(base, ("no", "yes"), jax.random.key(1))
        >>> of_adapter = jlora.LoraConfig(targets="q_proj/kernel", train="classifier", rank=2)
        >>> axes = jlora.trace_axes(model.apply, model.params, tokens)
        >>> _, lora = jlora.split(model.params, of_adapter, jax.random.key(0), axes=axes)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.save(folder, lora, of_adapter, model)
        ...     jlora.peft.labels(folder, base)
        ('LABEL_0', 'LABEL_1')
    """
    from jlora.models._families import family_of
    from jlora.models._families._labels import named, scored_by

    directory = located(directory)
    if _gguf.is_one(directory) or _own_format.method_in(directory) is not None:
        return ()
    head = scored_by(family_of(model.config.family, model.name))
    _, tensors = _read.contents(directory)
    if head is None or head.name not in tensors:
        return ()
    return named(len(tensors[head.name]), model.config)
