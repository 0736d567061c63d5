"""`publish`: an adapter as others load it: a folder with its card and tokenizer, or one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora._config import LoraConfig
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._words import first_few
from jlora.peft import (
    _gguf,
    _mlx,
    _model_card,
    _modelfile,
    _names,
    _save,
    _tensors,
    _write_gguf,
    _write_mlx,
)

FORMATS = ("peft", "mlx", "gguf-lora", "ollama")


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
    """Writes the adapter for PEFT, mlx-lm, llama.cpp or Ollama: all of it or none.

    A folder has a model card (README.md) beside the adapter.

    Args:
        directory: as for `save`; for llama.cpp the file, ``NAME.gguf``.
        lora: as for `save`.
        config: as for `save`.
        model: as for `save`; but for PEFT a `jlora.models.Model`.
        format: ``"peft"``; ``"mlx"``: mlx-lm's, with one rank and one scale for all modules;
            ``"gguf-lora"``: the one file that llama.cpp loads beside a GGUF model; or ``"ollama"``:
            a folder with that file, ``adapter.gguf``, and a Modelfile.
        about: what to say in the card, as `jlora.checkpoint.save` keeps it: ``settings`` of the
            run, ``system``.
        scores: measured numbers for the card: ``{"before": {...}, "after": {...}}``.
        tokenizer_of: a folder whose tokenizer and chat template go along.
        base_model: as for `save`; for Ollama its own name of the base, or a GGUF file: the one that
            the model came from unless given.
        names: as for `save`.
        axes: as for `save`.
        overwrite: as for `save`.

    Raises:
        ValueError: as `save`; or when the format has nothing like a part of the adapter.
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
    if format == "gguf-lora":
        _write_gguf.write(directory, lora, config, model, base_model, overwrite=overwrite)
        return
    if format == "ollama":
        files = _for_ollama(lora, config, model, base_model, about or {}, scores or {})
        _tensors.write_folder(directory, files, names=_gguf.FILE, overwrite=overwrite)
        return
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


def _for_ollama(
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    base_model: str | None,
    about: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of the folder, by name."""
    content = _write_gguf.content(lora, config, model, base_model)
    base = base_model or _write_gguf.base_file(model)
    if base is None:
        raise ValueError(
            f"a Modelfile names a base that Ollama has, and {model.name} is no GGUF file: give "
            "base_model, which is Ollama's name of the model or a .gguf file of it"
        )
    strength = {"r": config.rank, "lora_alpha": config.alpha}
    card = _model_card.card("ollama", str(base), strength, about, scores)
    return {
        _gguf.FILE: content,
        _modelfile.FILE: _modelfile.content(str(base), about.get("system")).encode(),
        "README.md": card.encode(),
    }
