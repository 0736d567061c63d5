"""`load`: an adapter in the PEFT format as (lora, config)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import _starts
from jlora._config import LoraConfig
from jlora._lowrank import Axes
from jlora._merge import Lora
from jlora._methods import DoraWeight, LoraWeight, TokenRows, WholeWeight
from jlora._rebase import rebase
from jlora._split import split
from jlora.peft import _fields, _lora_bias, _matching, _names, _pairs, _tensors
from jlora.peft._names import Layout, Leaf, Parameter
from jlora.peft._pairs import Pair

_OF_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_ROWS = ".token_adapter.trainable_tokens_delta"
_REPEATED_BIAS = re.compile(r"\.(modules_to_save|original_module)\.bias$")
_BASE_COPY = ".base_layer.weight"
_BASE_BIAS = ".base_layer.bias"


def load(
    directory: str | Path,
    model: Any,
    *,
    names: _names.Names | None = None,
    axes: Mapping[str, Axes] | None = None,
    dtype: Any = None,
) -> tuple[Lora, LoraConfig]:
    """The pair (lora, config) of an adapter that PEFT or `save` wrote.

    ``jlora.merge(params, lora)`` is what PEFT's ``merge_and_unload`` makes of the same model. An
    adapter that was saved with the start ``pissa`` or ``olora`` becomes one of the original
    weights, as PEFT repeats its start on them: its rank is twice as large (`jlora.rebase`).

    Args:
        directory: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: a `jlora.models.Model`; or a tree of parameters, and ``names``.
        names: the torch module of each leaf, by its path: ``{"layers/q/kernel":
            "model.layers.{}.self_attn.q_proj"}``, or a function from the path to it (None: the
            leaf has none). ``{}`` stands for the layer of a stacked leaf, once for each of its
            first stack dimensions; further stack dimensions stand in one torch parameter, whose
            own name is then given (experts, as (experts, out, in)). A leaf that holds the outputs
            of several modules side by side has ``{module: outputs}`` for a name; leaves that are
            one module in torch have its one name, in the order of its outputs.
        axes: from `jlora.trace_axes`, for leaves that are no matrix beyond what ``{}`` counts.
        dtype: of A and B; that of the file unless given.

    Raises:
        ValueError: when the files are missing or damaged, when the configuration asks for what
            jlora does not have, or when the tensors are not the model's: all of it named at once.

    Example:
        >>> lora, config = jlora.peft.load("adapter", model)
        >>> logits = jlora.lift(model.apply)(model.params, lora, tokens)
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder: expected one with {_fields.FILE}")
    settings = _fields.read(directory)
    tensors = _tensors.read(directory)
    apart = any(_OF_ONE_EXPERT.search(name) for name in tensors)
    known = _names.layout(model, names, axes, apart=apart)
    reader = _Reader(settings, tensors, known, None if dtype is None else jnp.dtype(dtype))
    lora = reader.nodes()
    if not any(isinstance(node, LoraWeight) for node in lora.values()) and not reader.problems:
        reader.problems.append("no leaf is adapted: expected at least one lora_A and lora_B")
    if reader.problems:
        raise ValueError(
            f"the adapter in {directory} does not fit the model:\n  " + "\n  ".join(reader.problems)
        )
    if _repeated(settings):
        lora, settings = _of_original(settings, lora, known)
    return lora, _config(settings, lora)


def describe(directory: str | Path) -> dict[str, Any]:
    """What ``adapter_config.json`` says, in PEFT's words, of all that jlora honours.

    Raises:
        ValueError: when there is none, or when it asks for what jlora does not have.
    """
    return _fields.read(Path(directory))


class _Reader:
    """Takes tensors out of the file one by one; what is left at the end was not expected."""

    def __init__(
        self,
        settings: dict[str, Any],
        tensors: Mapping[str, np.ndarray],
        layout: Layout,
        dtype: Any,
    ):
        self.settings, self.layout, self.dtype = settings, layout, dtype
        # DoRA's vector had this longer name once
        self.tensors = {
            name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): tensor
            for name, tensor in tensors.items()
        }
        # with bias="all" PEFT writes the biases of modules_to_save three times
        self.left = {name: None for name in self.tensors if not _REPEATED_BIAS.search(name)}
        self.problems: list[str] = []

    def nodes(self) -> Lora:
        """The node of every leaf that the file has something of, in the order of the leaves."""
        self._tie()
        nodes = {**self._adapted(), **self._rows()}
        for path, node in self._whole().items():
            if path in nodes:
                self.problems.append(
                    f"{path} is adapted and saved whole as well: jlora has one node for a leaf"
                )
            nodes[path] = node
        for path, problem in self.layout.unclear.items():
            of_it = [n for n in self.left for p in self.layout.of_leaf(path) if p.owns(n)]
            self.problems += [problem] if of_it else []
            self.left = {name: None for name in self.left if name not in of_it}
        self.problems += [f"{name}: not expected" for name in self.left]
        return {path: nodes[path] for path in self.layout.leaves if path in nodes}

    def _take(self, name: str) -> np.ndarray | None:
        self.left.pop(name, None)
        return self.tensors.get(name)

    def _tie(self) -> None:
        """A tied model's head has what its embedding has, or the adapter is of an untied model."""
        tied, head = self.layout.tied, _names.HEAD
        if tied is None:
            return
        same = {
            f"{head}.lora_A.weight": (f"{tied}.lora_embedding_B", True),
            f"{head}.lora_B.weight": (f"{tied}.lora_embedding_A", True),
            f"{head}.weight": (f"{tied}.weight", False),
            f"{head}{_BASE_COPY}": (f"{tied}{_BASE_COPY}", False),
            f"{head}{_ROWS}": (f"{tied}{_ROWS}", False),
        }
        for name, (source, turned) in same.items():
            mine, other = self._take(name), self.tensors.get(source)
            if mine is None and other is None:
                continue
            follows = name.endswith(_ROWS) or not (
                turned or _matching.is_saved(self.settings, tied)
            )
            if mine is None and follows:  # PEFT changes both at once
                continue
            other = other.T if turned and other is not None else other
            if mine is None or other is None or not np.array_equal(mine, other):
                self.problems.append(
                    f"{name} is not that of {source}: the model's head is its embedding, and the "
                    "adapter changes one of them alone. Untie them, or train with "
                    "ensure_weight_tying=True"
                )

    # LoRA and DoRA

    def _adapted(self) -> Lora:
        targets = self._targets()
        prefixes = _pairs.prefixes(targets)
        pairs: dict[str, Pair] = {}
        for parameter in targets:
            if pair := self._pair(parameter, prefixes[parameter.full_name]):
                pairs[parameter.full_name] = pair
        by_leaf: dict[str, list[Parameter]] = {}
        for parameter in targets:
            for part in parameter.parts:
                by_leaf.setdefault(part.leaf.path, []).append(parameter)
        lora: Lora = {}
        for path, parameters in by_leaf.items():
            if all(parameter.full_name in pairs for parameter in parameters):
                lora[path] = self._node(self.layout.leaves[path], parameters, pairs)
        if self.settings["lora_bias"]:
            lora |= _lora_bias.read(pairs, self.layout, self._take, self.problems)
        return lora

    def _targets(self) -> list[Parameter]:
        """The parameters that the file adapts, which must be those that the configuration means."""
        settings, found = self.settings, []
        parameters = [p for p in self.layout.parameters.values() if p.is_matrix]
        for parameter in parameters:
            if parameter.bare or self._is_wrapped(parameter):
                if _matching.is_target_parameter(settings, parameter.full_name):
                    found.append(parameter)
                continue
            has = any(n in self.tensors for n in _pairs.tensor_names(parameter, parameter.module))
            targets = settings["target_modules"]
            by_file = isinstance(targets, str) and targets.lower() == _matching.ALL_LINEAR
            # without any list the file itself says it, as for "all-linear"
            by_file = by_file or (targets is None and settings["target_parameters"] is None)
            if has if by_file else _matching.is_target(settings, parameter.module):
                found.append(parameter)
        return found

    def _is_wrapped(self, parameter: Parameter) -> bool:
        """Whether ``target_parameters`` means a module's own weight."""
        return _matching.is_target_parameter(self.settings, parameter.full_name)

    def _pair(self, parameter: Parameter, prefix: str) -> Pair | None:
        names = _pairs.tensor_names(parameter, prefix)
        missing = [name for name in names if self._take(name) is None]
        magnitude = _pairs.magnitude_name(prefix)
        if self.settings["use_dora"] and self._take(magnitude) is None:
            missing.append(magnitude)
        if missing:
            self.problems.append(f"{', '.join(missing)}: missing")
            return None
        rank, scaling = _matching.rank_and_scaling(self.settings, parameter.target)
        pair = _pairs.read(parameter, prefix, self.tensors, rank, scaling)
        if isinstance(pair, str):
            self.problems.append(pair)
            return None
        return pair

    def _node(
        self, leaf: Leaf, parameters: list[Parameter], pairs: Mapping[str, Pair]
    ) -> LoraWeight:
        """The node of one leaf out of the pairs of all its layers."""
        assert leaf.axes is not None
        pieces: dict[tuple[int, ...], list[tuple[slice, Pair]]] = {}
        for parameter in parameters:
            pair = pairs[parameter.full_name]
            for part in parameter.parts:
                if part.leaf.path == leaf.path:
                    magnitude = None if pair.magnitude is None else pair.magnitude[part.theirs]
                    piece = dataclasses.replace(
                        pair, b=pair.b[..., part.theirs], magnitude=magnitude
                    )
                    pieces.setdefault(part.layer, []).append((part.ours, piece))
        joined = {layer: _pairs.beside(each, leaf.outputs) for layer, each in pieces.items()}
        rank = max(pair.rank for pair in joined.values())
        dtype = self.dtype or jnp.result_type(*(p.a.dtype for p in joined.values()))
        a = np.zeros((*leaf.stack, leaf.inputs, rank), dtype)
        b = np.zeros((*leaf.stack, rank, leaf.outputs), dtype)
        scaling = np.zeros((*leaf.stack, rank), np.float32)
        for layer, pair in joined.items():
            a[layer][..., : pair.rank] = pair.a
            b[layer][..., : pair.rank, :] = pair.b
            scaling[layer][..., : pair.rank] = pair.scaling
        if (scaling == scaling.flat[0]).all():
            scaling = scaling.reshape(-1)[0]
        ins = [leaf.shape[dim] for dim in leaf.axes.inputs]
        outs = [leaf.shape[dim] for dim in leaf.axes.outputs]
        node = LoraWeight(
            a=jnp.asarray(a.reshape(*leaf.stack, *ins, rank)),
            b=jnp.asarray(b.reshape(*leaf.stack, rank, *outs)),
            scaling=jnp.asarray(scaling),
            axes=leaf.axes,
            dropout=self.settings["lora_dropout"],
        )
        if not self.settings["use_dora"]:
            return node
        return self._dora(leaf, node, pieces)

    def _dora(self, leaf: Leaf, node: LoraWeight, pieces) -> DoraWeight:
        """With the magnitudes of the file; where it has none, the norms of the weight."""
        covered = sum(span.stop - span.start for each in pieces.values() for span, _ in each)
        places = math.prod(leaf.stack[: leaf.layers]) * leaf.outputs
        if covered == places:
            dtype = next(iter(pieces.values()))[0][1].magnitude.dtype
            magnitude = np.zeros((*leaf.stack, leaf.outputs), dtype)
        else:
            magnitude = np.array(DoraWeight.of(node, leaf.base()).magnitude)
            magnitude = magnitude.reshape(*leaf.stack, leaf.outputs)
        for layer, each in pieces.items():
            for span, pair in each:
                magnitude[layer][..., span] = pair.magnitude
        fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        outs = [leaf.shape[dim] for dim in node.axes.outputs]
        return DoraWeight(**fields, magnitude=jnp.asarray(magnitude.reshape(*leaf.stack, *outs)))

    # rows of tables

    def _rows(self) -> Lora:
        asked = self.settings["trainable_token_indices"] or {}
        if isinstance(asked, list):
            embedding = next(
                (p.module for p in self.layout.parameters.values() if p.embeds), "embed_tokens"
            )
            asked = {embedding: asked}
        lora: Lora = {}
        for name, tokens in asked.items():
            modules = [module for module in self.layout.modules if module.endswith(name)]
            if not modules and self.layout.tied and _names.HEAD.endswith(name):
                if tokens != asked.get(self.layout.tied, asked.get("embed_tokens", tokens)):
                    self.problems.append(f"trainable_token_indices of {name}: its head is tied")
                continue
            if not modules:
                self.problems.append(
                    f"trainable_token_indices names {name}, which is no module of the model"
                )
            for module in modules:
                self._rows_of(module, tokens, lora)
        return lora

    def _rows_of(self, module: str, tokens: list[int], lora: Lora) -> None:
        parameter = self.layout.parameters.get(f"{module}.weight")
        rows = self._take(f"{module}{_ROWS}")
        if parameter is None or len(parameter.parts) != 1 or not parameter.is_matrix:
            self.problems.append(f"{module}: expected a table of rows for tokens")
            return
        leaf = parameter.parts[0].leaf
        count, width = (
            (leaf.inputs, leaf.outputs) if parameter.embeds else (leaf.outputs, leaf.inputs)
        )
        shape = (len(tokens), width)
        if rows is None or rows.shape != shape:
            got = "missing" if rows is None else f"got {rows.shape}"
            self.problems.append(f"{module}{_ROWS}: expected {shape}, {got}")
        elif max(tokens) >= count:
            self.problems.append(f"{module} has {count} rows: tokens names row {max(tokens)}")
        elif leaf.axes is None or len(leaf.shape) != 2:
            self.problems.append(f"{leaf.path} has shape {leaf.shape}: expected a table of rows")
        else:
            [vocabulary] = leaf.axes.inputs if parameter.embeds else leaf.axes.outputs
            node = TokenRows.of(leaf.value, tuple(tokens), vocabulary)
            # PEFT keeps the rows as they become, jlora what is added to them
            before = np.take(np.asarray(leaf.base()), tokens, axis=vocabulary)
            before = before.T if vocabulary == 1 else before
            delta = rows.astype(np.float32) - before.astype(np.float32)
            lora[leaf.path] = dataclasses.replace(node, delta=jnp.asarray(delta))

    # whole tensors

    def _whole(self) -> Lora:
        values: dict[str, np.ndarray] = {}
        for name in list(self.left):
            copied = name.endswith(_BASE_COPY)
            inside = ".base_layer." if name.endswith((_BASE_COPY, _BASE_BIAS)) else "."
            full = ".".join(name.rsplit(inside, 1))
            parameter = self.layout.parameters.get(full)
            if parameter is None:
                continue
            tensor = self._take(name)
            assert tensor is not None
            if tensor.shape != parameter.shape_in_torch:
                self.problems.append(
                    f"{name}: expected {parameter.shape_in_torch}, got {tensor.shape}"
                )
                continue
            own = _matching.is_saved(self.settings, parameter.module) or parameter.name == "bias"
            if not own and self._is_base(parameter, tensor):
                continue  # PEFT keeps a copy of a table beside an adapter of it
            if copied:
                self.problems.append(f"{name}: another base than the model's")
                continue
            ours = parameter.from_torch(tensor)
            for part in parameter.parts:
                leaf = part.leaf
                if leaf.path not in values:
                    values[leaf.path] = leaf.matrices(leaf.base()).astype(tensor.dtype)
                values[leaf.path][part.layer][..., part.ours] = ours[..., part.theirs]
        self._check_saved()
        return {
            path: WholeWeight(jnp.asarray(self.layout.leaves[path].from_matrices(value)))
            for path, value in values.items()
        }

    def _is_base(self, parameter: Parameter, tensor: np.ndarray) -> bool:
        leaves = self.layout.leaves
        base = parameter.in_torch(lambda path: leaves[path].matrices(leaves[path].base()))
        return np.array_equal(base, tensor.astype(base.dtype))

    def _check_saved(self) -> None:
        """Every parameter of a module in ``modules_to_save`` must be in the file."""
        for parameter in self.layout.parameters.values():
            saved = _matching.is_saved(self.settings, parameter.module)
            if saved and parameter.full_name not in self.tensors:
                self.problems.append(f"{parameter.full_name}: missing")


def _config(settings: Mapping[str, Any], lora: Lora) -> LoraConfig:
    """The configuration with which `split` gives nodes like these."""
    adapted = {path: node for path, node in lora.items() if isinstance(node, LoraWeight)}
    start = settings["init_lora_weights"]
    start = start.lower() if isinstance(start, str) else start
    plain = LoraConfig(
        targets=tuple(map(LoraConfig.pattern_of, adapted)),
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        rslora=settings["use_rslora"],
        method="dora" if settings["use_dora"] else "lora",
        dropout=settings["lora_dropout"],
        dtype=str(jnp.result_type(*(node.a for node in adapted.values()))),
    )
    ranks: dict[str, Any] = {}
    alphas: dict[str, Any] = {}
    for path, node in adapted.items():
        rank, alpha = _per_layer(node, plain)
        if rank != plain.rank:
            ranks[LoraConfig.pattern_of(path)] = rank
        if alpha != plain.alpha:
            alphas[LoraConfig.pattern_of(path)] = alpha
    highest = [max(r) if isinstance(r, tuple) else r for r in (plain.rank, *ranks.values())]
    init = start if start in _fields.REPEATED else _fields.STARTS[start]
    if _starts.find(init).even_rank and any(rank % 2 for rank in highest):
        init = "kaiming"  # of sums of ranks
    whole = [path for path, node in lora.items() if isinstance(node, WholeWeight)]
    bias = {"none": "none", "lora_only": "adapted", "all": "all"}[settings["bias"]]
    beside = {path.rpartition("/")[0] for path in adapted}
    biases = [
        path
        for path in whole
        for module, _, last in [path.rpartition("/")]
        if last in ("bias", "b") and (bias == "all" or (bias == "adapted" and module in beside))
    ]
    return dataclasses.replace(
        plain,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        init=init,
        bias="lora" if settings["lora_bias"] else bias if biases else "none",
        train=tuple(LoraConfig.pattern_of(path) for path in whole if path not in biases),
        tokens={
            LoraConfig.pattern_of(path): node.tokens
            for path, node in lora.items()
            if isinstance(node, TokenRows)
        },
    )


def _per_layer(node: LoraWeight, config: LoraConfig) -> tuple[Any, Any]:
    """The rank and the alpha of one node: a number each, or one a layer where they differ."""
    scaling = np.asarray(node.scaling)
    if scaling.ndim == 0:
        return node.rank, _matching.alpha_of(float(scaling), node.rank, config)
    if not node.axes.stack:
        return node.rank, _matching.alpha_of(float(scaling.max()), node.rank, config)
    layers = scaling.reshape(len(scaling), -1, node.rank)
    ranks = tuple(int((layer != 0).sum(-1).max()) for layer in layers)
    alphas = tuple(
        _matching.alpha_of(float(layer.max()), rank, config) if rank else config.alpha
        for layer, rank in zip(layers, ranks, strict=True)
    )
    same = len(set(alphas)) == 1
    return ranks[0] if len(set(ranks)) == 1 else ranks, alphas[0] if same else alphas


def _repeated(settings: Mapping[str, Any]) -> bool:
    start = settings["init_lora_weights"]
    return isinstance(start, str) and start.lower() in _fields.REPEATED


def _of_original(
    settings: Mapping[str, Any], lora: Lora, layout: Layout
) -> tuple[Lora, dict[str, Any]]:
    """The adapter without what PEFT takes out of the weight when it loads it, and its settings.

    Embeddings are as they were: PEFT starts them as any other.
    """
    config = _config(settings, lora)
    moved = {
        path: node
        for path, node in lora.items()
        if isinstance(node, LoraWeight) and not layout.leaves[path].embeds
    }
    if fused := [path for path in moved if not _is_one_module(layout, path)]:
        raise ValueError(
            f"init_lora_weights is {settings['init_lora_weights']!r}: its start is one of each "
            f"torch module, which {', '.join(fused)} are not. Convert it in PEFT: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    patterns = {LoraConfig.pattern_of(path) for path in moved}
    _, start = split(
        {path: layout.leaves[path].base() for path in moved},
        dataclasses.replace(
            config,
            targets=tuple(patterns),
            rank_pattern={p: r for p, r in config.rank_pattern.items() if p in patterns},
            alpha_pattern={p: a for p, a in config.alpha_pattern.items() if p in patterns},
            bias="none",
            train=(),
            tokens={},
            dtype="float32",
        ),
        jax.random.key(0),
        axes={path: node.axes for path, node in moved.items()},
    )
    wider, _ = rebase(moved, start, config)
    growth = 2**0.5 if settings["use_rslora"] else 2
    return {**lora, **wider}, {
        **settings,
        "r": 2 * settings["r"],
        "lora_alpha": growth * settings["lora_alpha"],
        "init_lora_weights": True,
    }


def _is_one_module(layout: Layout, path: str) -> bool:
    """Whether a leaf's matrices are torch modules, one each."""
    return all(
        len(parameter.parts) == 1 and part.ours == slice(0, part.leaf.outputs)
        for parameter in layout.of_leaf(path)
        for part in parameter.parts
    )
