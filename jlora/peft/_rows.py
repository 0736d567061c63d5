"""Trained rows of tables: PEFT's ``trainable_token_indices``."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jlora._lora_dict import Lora
from jlora._methods import TokenRows
from jlora.peft import _names
from jlora.peft._file import AdapterFile

SUFFIX = ".token_adapter.trainable_tokens_delta"


def read(file: AdapterFile) -> Lora:
    """The nodes of all tables with trained rows; what is wrong goes to the file's problems."""
    asked = file.settings["trainable_token_indices"] or {}
    if isinstance(asked, list):
        embedding = next(
            (p.module for p in file.layout.parameters.values() if p.embeds), "embed_tokens"
        )
        asked = {embedding: asked}
    lora: Lora = {}
    for name, tokens in asked.items():
        modules = [module for module in file.layout.modules if module.endswith(name)]
        if not modules and file.layout.tied and _names.HEAD.endswith(name):
            if tokens != asked.get(file.layout.tied, asked.get("embed_tokens", tokens)):
                file.problems.append(f"trainable_token_indices of {name}: its head is tied")
            continue
        if not modules:
            file.problems.append(
                f"trainable_token_indices names {name}, which is no module of the model"
            )
        for module in modules:
            _rows_of(file, module, tokens, lora)
    return lora


def _rows_of(file: AdapterFile, module: str, tokens: list[int], lora: Lora) -> None:
    parameter = file.layout.parameters.get(f"{module}.weight")
    rows = file.take(f"{module}{SUFFIX}")
    if (
        parameter is None
        or not parameter.is_matrix
        or not file.layout.is_one_parameter(parameter.parts[0].leaf.path)
    ):
        file.problems.append(f"{module}: expected a table of rows for tokens")
        return
    leaf = parameter.parts[0].leaf
    count, width = (leaf.inputs, leaf.outputs) if parameter.embeds else (leaf.outputs, leaf.inputs)
    shape = (len(tokens), width)
    if rows is None or rows.shape != shape:
        got = "missing" if rows is None else f"got {rows.shape}"
        file.problems.append(f"{module}{SUFFIX}: expected {shape}, {got}")
    elif not tokens:
        return  # no row trains
    elif max(tokens) >= count:
        file.problems.append(f"{module} has {count} rows: tokens names row {max(tokens)}")
    elif leaf.axes is None or len(leaf.shape) != 2:
        file.problems.append(f"{leaf.path} has shape {leaf.shape}: expected a table of rows")
    else:
        [vocabulary] = leaf.axes.inputs if parameter.embeds else leaf.axes.outputs
        node = TokenRows.from_table(leaf.value, tuple(tokens), vocabulary)
        # PEFT keeps the rows as they become, jlora what is added to them
        before = np.take(np.asarray(leaf.base()), tokens, axis=vocabulary)
        before = before.T if vocabulary == 1 else before
        delta = rows.astype(np.float32) - before.astype(np.float32)
        lora[leaf.path] = dataclasses.replace(node, delta=jnp.asarray(delta))
