"""`publish`: an adapter as a folder that others load: its files, its card, its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora._config import LoraConfig
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._words import first_few
from jlora.peft import _mlx, _model_card, _names, _save, _tensors, _write_mlx

FORMATS = ("peft", "mlx")


def publish(
    directory: str | Path,
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    *,
    format: str = "peft",
    about: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    tokenizer_of: Path | None = None,
    base_model: str | None = None,
    names: _names.Names | None = None,
    axes: Mapping[str, Axes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the adapter for PEFT or for mlx-lm, with a model card (README.md): all of it or none.

    Args:
        directory: as for `save`.
        lora: as for `save`.
        config: as for `save`.
        model: as for `save`; for mlx-lm a `jlora.models.Model`.
        format: ``"peft"``, or ``"mlx"``: mlx-lm's, with one rank and one scale for all modules.
        about: what to say in the card, as `jlora.checkpoint.save` keeps it: ``settings`` of the
            run, ``system``.
        scores: measured numbers for the card: ``{"before": {...}, "after": {...}}``.
        tokenizer_of: a folder whose tokenizer and chat template go along.
        base_model: as for `save`.
        names: as for `save`.
        axes: as for `save`.
        overwrite: as for `save`.

    Raises:
        ValueError: as `save`; or when mlx-lm has nothing like a part of the adapter.
        OSError: as `save`.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.publish(folder, lora, config, frozen, names={"kernel": "model.proj"})
        ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}: expected {' or '.join(map(repr, FORMATS))}")
    directory = Path(directory)
    tensors, settings = _save.contents(lora, config, model, names, axes, base_model)
    base = base_model or settings["base_model_name_or_path"]
    where = _tensors.IN_PEFT
    if format == "mlx":
        known = _names.layout(model, names, axes)
        decodes = known.is_language_model and model.task_type == "CAUSAL_LM"
        layers = model.config.layers if decodes else None
        tensors, written, problems = _write_mlx.contents(tensors, settings, known, layers)
        if problems:
            raise ValueError(f"the adapter can't be written for mlx-lm:{first_few(problems, 12)}")
        settings, where = {**written, "model": base}, _tensors.Where(_mlx.FILE, "")
    card = _model_card.card(format, base, settings, about or {}, scores or {})
    beside = {"README.md": card.encode()}
    if tokenizer_of is not None:
        from jlora.models import tokenizer_files

        beside |= tokenizer_files(tokenizer_of)
    _tensors.write(directory, tensors, settings, overwrite=overwrite, where=where, beside=beside)
