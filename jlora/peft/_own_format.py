"""Adapters of a method with a format of its own in PEFT (`jlora.extend.PeftFormat`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora._config import LoraConfig
from jlora._lora_dict import Lora, of_leaves, shared_name, shared_of
from jlora._lowrank import Axes, promoted
from jlora._method import Method
from jlora._node import Node
from jlora._peft_form import Own
from jlora._peft_format import PeftFormat
from jlora._registry import NODES, method_class, node_class
from jlora._split import leaf_of
from jlora._words import first_few
from jlora.peft import _fields, _matching, _names, _tensors
from jlora.peft._layout import Layout, Parameter
from jlora.peft._short_names import short

# What every kind of adapter has.
_COMMON: dict[str, Any] = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "peft_version": _fields.VERSION,
    "revision": None,
    "task_type": None,
    "target_modules": None,
}
# What only some have: which of the modules. It is read, and not written.
_CHOICE: dict[str, Any] = {
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
}


def has(config: LoraConfig) -> bool:
    """Whether the configuration's method has a format of its own."""
    return getattr(node_class(str(config.method)), "peft", None) is not None


def method_in(directory: Path) -> type[Method] | None:
    """The method whose format an adapter is in; None for LoRA's."""
    kind = _fields.found_in(directory).get("peft_type", "LORA")
    if kind == "LORA":
        return None
    formats = {
        cls.peft.peft_type: cls
        for cls in NODES.values()
        if issubclass(cls, Method) and cls.peft is not None
    }
    if isinstance(kind, str) and kind in formats:
        return formats[kind]
    raise ValueError(
        f"{directory / _fields.FILE}: peft_type is {kind!r}, and no registered method has that "
        f"format. Known are {', '.join(['LORA', *formats])}: import the module of the method that "
        "has it (jlora.extend.PeftFormat)"
    )


def contents(
    lora: Mapping[str, Node], config: LoraConfig, layout: Layout
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """The tensors and the settings of an adapter, or what is wrong."""
    form, shared = _format(config), shared_of(lora)
    tensors: dict[str, np.ndarray] = {}
    modules: list[str] = []
    problems: list[str] = []
    for path, node in of_leaves(lora).items():
        own = node.peft_form()
        if not isinstance(own, Own):
            problems.append(f"{path}: {form.peft_type} of PEFT has nothing like {node.kind!r} here")
            continue
        parameters, problem = _modules_of(path, layout)
        problems += problem
        for parameter in parameters:
            [part] = parameter.parts
            modules.append(parameter.module)
            for name, value in own.tensors.items():
                tensors[f"{parameter.module}.{name}"] = np.asarray(value)[part.layer]
    for name, value in form.shared_tensors(shared).items():
        tensors[f"{_tensors.BESIDE}{name}"] = np.asarray(value)
    others = [p.module for p in layout.parameters.values() if p.module not in modules]
    settings = {
        **_COMMON,
        **form.defaults,
        **form.settings(config, shared),
        "peft_type": form.peft_type,
        "target_modules": short(modules, [*others, *layout.elsewhere]),
    }
    return tensors, settings, problems


def load(
    directory: Path,
    method: type[Method],
    model: Any,
    names: _names.Names | None,
    axes: Mapping[str, Axes] | None,
    dtype: Any,
) -> tuple[Lora, LoraConfig]:
    """The pair (lora, config) of an adapter in such a format, in the file's dtype unless given one.

    Raises:
        ValueError: when it is damaged, asks for what the method does not have, or does not fit the
            model: all of it named at once.
    """
    form = method.peft
    assert form is not None
    settings, fields = _settings(directory, form)
    tensors = _tensors.read(directory, shared=True)
    beside = {name: tensors.pop(name) for name in [*tensors] if name.startswith(_tensors.BESIDE)}
    layout, problems = _names.layout(model, names, axes), []
    chosen: dict[str, list[Parameter]] = {}
    for path in layout.leaves:
        parameters = [
            p
            for p in layout.of_leaf(path)
            if p.is_matrix and _matching.is_target(settings, p.module)
        ]
        if parameters:
            chosen[path], problem = _modules_of(path, layout)
            problems += problem
            if not problem and len(parameters) < len(chosen[path]):
                problems.append(f"{path}: the adapter is for some of its layers alone")
    if not chosen:
        problems.append(f"target_modules {settings['target_modules']!r} finds no module")
    if problems:
        raise _unfit(directory, problems)
    dtype = dtype or promoted(*(tensor.dtype for tensor in (*tensors.values(), *beside.values())))
    config = LoraConfig(
        targets=tuple(LoraConfig.pattern_of(path) for path in chosen),
        method=method,
        **{"dtype": str(dtype), **fields},
    )
    lora: Lora = {}
    for path, parameters in chosen.items():
        leaf = layout.leaves[path]
        assert leaf.axes is not None
        spec = leaf_of(path, leaf.value, jax.random.key(0), config, leaf.axes, config.rank)
        stacked: dict[str, Any] = {}
        for name, shape in form.tensors(spec).items():
            whole = np.zeros((*leaf.stack, *shape), dtype)
            for parameter in parameters:
                full = f"{parameter.module}.{name}"
                tensor = tensors.pop(full, None)
                if tensor is None or tensor.shape != shape:
                    got = "missing" if tensor is None else f"got {tensor.shape}"
                    problems.append(f"{full}: expected {shape}, {got}")
                else:
                    whole[parameter.parts[0].layer] = tensor
            stacked[name] = jnp.asarray(whole)
        if not problems:
            lora[path] = form.node(spec, stacked)
    found = {
        name.removeprefix(_tensors.BESIDE): jnp.asarray(tensor, dtype)
        for name, tensor in beside.items()
    }
    for name, factor in form.read_shared(found).items():
        lora[shared_name(name)] = factor
    shared = shared_of(lora)
    for path, node in of_leaves(lora).items():
        if problem := node.misfit(layout.leaves[path].shape, shared):
            problems.append(f"{path}: {problem}")
    problems += [f"{name}: not expected" for name in tensors]
    if problems:
        raise _unfit(directory, problems)
    return lora, config


def _settings(directory: Path, form: PeftFormat) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's fields, defaults filled in, and those of a configuration that they give."""
    found = _fields.found_in(directory)
    known = {**_COMMON, **_CHOICE, **form.defaults, "peft_type": ""}
    problems = [
        f"{name} is {value!r}: jlora does not know the field"
        for name, value in found.items()
        if name not in known and _fields.says_something(value)
    ]
    if _fields.says_something(found.get("modules_to_save")):
        problems.append("modules_to_save: jlora reads it in adapters of LoRA alone")
    settings = {name: found.get(name, default) for name, default in known.items()}
    problems += _fields.wrong_choice(settings)
    fields: dict[str, Any] = {}
    try:
        fields = form.config(settings)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        where = directory / _fields.FILE
        raise ValueError(f"{where} can't be honoured:{first_few(problems, 12)}")
    return settings, fields


def _format(config: LoraConfig) -> PeftFormat:
    method = method_class(str(config.method))
    assert method.peft is not None
    return method.peft


def _modules_of(path: str, layout: Layout) -> tuple[list[Parameter], list[str]]:
    """The torch modules that a leaf is, one for each layer, or what is wrong."""
    if path in layout.unclear:
        return [], [layout.unclear[path]]
    if path not in layout.leaves:
        return [], [f"{path}: names has no torch module for it"]
    parameters = layout.of_leaf(path)
    for parameter in parameters:
        [first, *more] = parameter.parts
        whole = first.ours == slice(0, first.leaf.outputs)
        if more or not whole or parameter.lone or parameter.embeds:
            return [], [f"{path}: expected one linear module of torch for each of its layers"]
    return parameters, []


def _unfit(directory: Path, problems: list[str]) -> ValueError:
    return ValueError(
        f"the adapter in {directory} does not fit the model:" + first_few(problems, 12)
    )
