"""`save`: (lora, config) as an adapter in the PEFT format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jlora import _hub
from jlora._config import LoraConfig
from jlora._lora_dict import check, check_is_adapter, of_leaves
from jlora._lowrank import Axes
from jlora._node import Node
from jlora._peft_form import BiasOnB, LowRank, Own, Rows, Whole
from jlora._registry import method_class
from jlora._words import first_few
from jlora.peft import _fields, _names, _own_format, _tensors
from jlora.peft._layout import Layout
from jlora.peft._write_factors import FactorWriter
from jlora.peft._write_whole_leaves import WholeLeafWriter

_STARTS = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def save(
    directory: str | Path,
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    *,
    names: _names.Names | None = None,
    axes: Mapping[str, Axes] | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT 0.21 does.

    PEFT's ``alpha / rank`` is the adapter's own scaling; a layer that has none is no target. Both
    files are complete before the first takes its place.

    Args:
        directory: a new or an empty folder; with ``overwrite`` one whose adapter is replaced.
        lora: an adapter of ``model``'s own parameters. What started with part of the weight
            (``pissa``, ``olora``) goes through `jlora.rebase` first.
        config: the configuration that it was split with.
        model: the model or the tree that `load` would be given. Its values are read where only
            some rows of a table train.
        names: as for `load`.
        axes: as for `load`.
        base_model: what ``base_model_name_or_path`` says; the model's own name unless given.
        overwrite: replaces an adapter in the folder; other files stay.

    Raises:
        ValueError: when the folder holds something, or when the adapter can't be written in this
            format: every reason is named.
        OSError: when the files can't be written; what was there stays.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jlora
        >>> config = jlora.LoraConfig(targets="kernel", rank=2)
        >>> frozen, lora = jlora.split({"kernel": jnp.ones((7, 5))}, config, jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jlora.peft.save(folder, lora, config, frozen, names={"kernel": "model.proj"})
        ...     again, _ = jlora.peft.load(folder, frozen, names={"kernel": "model.proj"})
        >>> bool((again["kernel"].a == lora["kernel"].a).all())
        True
    """
    tensors, settings = contents(lora, config, model, names, axes, base_model)
    _tensors.write(Path(directory), tensors, settings, overwrite=overwrite)


def contents(
    lora: Mapping[str, Node],
    config: LoraConfig,
    model: Any,
    names: _names.Names | None,
    axes: Mapping[str, Axes] | None,
    base_model: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the settings that `save` writes.

    Raises:
        ValueError: as `save`.
    """
    check_is_adapter(lora)
    known = _names.layout(model, names, axes)
    check(model.params if known.is_language_model else model, lora)
    tensors, settings, problems = (
        _own_format.contents(lora, config, known)
        if _own_format.has(config)
        else _Adapter(lora, config, known).contents()
    )
    if problems:
        raise ValueError(
            "the adapter can't be written in the PEFT format:" + first_few(problems, 12)
        )
    own = model.name if known.is_language_model else None
    base = base_model or own
    on_hub = _hub.parsed(base or "")
    settings["base_model_name_or_path"] = on_hub.name if on_hub else base
    settings["revision"] = on_hub.revision if on_hub else None
    settings["task_type"] = model.task_type if known.is_language_model else None
    return tensors, settings


class _Adapter:
    """The tensors and the settings of one adapter of PEFT's LoRA."""

    def __init__(self, lora: Mapping[str, Node], config: LoraConfig, layout: Layout):
        self._config, self._layout = config, layout
        self._forms = {path: node.peft_form() for path, node in of_leaves(lora).items()}
        self._low_rank = _of_form(LowRank, self._forms)
        self._biases = _of_form(BiasOnB, self._forms)
        self._problems = self._unfit(lora)

    def contents(self) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
        """The tensors and the settings, or what is wrong."""
        if self._problems:
            return {}, {}, self._problems
        factors = FactorWriter(self._low_rank, self._biases, self._config, self._layout)
        wholes, rows = _of_form(Whole, self._forms), _of_form(Rows, self._forms)
        others = WholeLeafWriter(wholes, rows, self._layout, self._config.dtype)
        pairs = factors.pairs()
        tensors = factors.tensors(pairs)
        tokens = others.rows(tensors)
        saved, bias = others.wholes(tensors, pairs)
        settings = {
            **factors.targets(pairs),
            **factors.strengths(pairs),
            "lora_dropout": self._config.dropout,
            "use_dora": any(form.magnitude is not None for form in self._low_rank.values()),
            "use_rslora": self._config.rslora,
            "init_lora_weights": _STARTS.get(self._config.init, True),
            "fan_in_fan_out": any(
                p.transposed and not (p.embeds or p.bare)
                for p in map(self._layout.parameters.get, pairs)
                if p
            ),
            "bias": bias,
            "lora_bias": bool(self._biases),
            "modules_to_save": saved or None,
            "trainable_token_indices": tokens or None,
            "ensure_weight_tying": factors.tied or others.tied,
        }
        if settings["target_parameters"]:
            settings["lora_dropout"] = 0.0  # PEFT has none for parameters
        return tensors, _fields.complete(settings), [*factors.problems, *others.problems]

    def _unfit(self, lora: Mapping[str, Node]) -> list[str]:
        """What this format does not hold."""
        leaves, problems = self._layout.leaves, []
        if not self._low_rank:
            problems.append("no leaf is adapted: expected at least one LoraWeight")
        if method_class(str(self._config.method)).moves_weight(self._config.init):
            problems.append(
                f"init is {self._config.init!r}, which took weight out of the model: "
                "jlora.rebase(lora, start, config) makes an adapter of the original of it"
            )
        for path, form in self._forms.items():
            low_rank = path in self._low_rank
            if path not in leaves:
                problems.append(f"{path}: names has no torch module for it")
            elif low_rank and path in self._layout.unclear:
                problems.append(self._layout.unclear[path])
            elif form is None or isinstance(form, Own):
                problems.append(f"{path}: PEFT's LoRA has nothing like {type(lora[path]).__name__}")
            elif isinstance(form, Rows) and not self._layout.is_one_parameter(path):
                problems.append(f"{path}: expected one table of torch for rows that train")
            elif low_rank and (axes := lora[path].axes) != leaves[path].axes:  # type: ignore
                problems.append(
                    f"{path}: the adapter reads it as {axes}, the names as {leaves[path].axes}"
                )
        adapted = {p.module for path in self._low_rank for p in self._layout.of_leaf(path)}
        problems += [
            f"{path}: {parameter.module} has a bias on B and no B"
            for path in self._biases
            for parameter in self._layout.of_leaf(path)
            if parameter.module not in adapted
        ]
        if len({form.magnitude is None for form in self._low_rank.values()}) > 1:
            problems.append("some leaves have DoRA and others LoRA: PEFT has one for all")
        return problems


Form = TypeVar("Form")


def _of_form(kind: type[Form], forms: Mapping[str, Any]) -> dict[str, Form]:
    return {path: form for path, form in forms.items() if isinstance(form, kind)}
