"""An adapter that jlora saved: methods, targets, ranks, its base and how it was trained."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _patterns, _words, checkpoint
from jlora._config import LoraConfig
from jlora._info import _text
from jlora._node import Node

KIND = "adapter"

_SAID_ELSEWHERE = {"targets", "rank", "alpha", "method"}


def facts(directory: Path) -> dict[str, Any]:
    """What ``adapter.json`` says of it.

    Raises:
        ValueError: when it is damaged.
    """
    description = checkpoint.describe(directory)
    lora, config = checkpoint.outline(directory)
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        for path in lora:
            _patterns.search(pattern, path)  # one that never ends is an error here
    leaves = [_leaf(path, node, config) for path, node in lora.items()]
    metadata = dict(description["metadata"])
    base = description["base"]
    return {
        "kind": KIND,
        "path": str(directory),
        "bytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
        "parameters": sum(leaf["parameters"] for leaf in leaves),
        "config": {**_fresh(), **description["config"]},
        "leaves": leaves,
        "base": {"model": metadata.get("model"), **({} if base is None else _base(base))},
        "metadata": metadata,
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    config, leaves, metadata = known["config"], known["leaves"], known["metadata"]
    kinds = collections.Counter(leaf["kind"] for leaf in leaves)
    ranks = [rank for leaf in leaves for rank in _each(leaf["rank"])]
    scalings = [scaling for leaf in leaves for scaling in leaf["scaling"]]
    fresh = _fresh()
    further = {
        name: _shown(value)
        for name, value in config.items()
        if name not in _SAID_ELSEWHERE and value != fresh.get(name)
    }
    # train.py's; who saves an adapter may have others under these names, or none
    settings, aside = metadata.get("settings"), {"model", "dtype", "system"}
    if isinstance(settings, Mapping):
        aside.add("settings")
        settings = {
            name: value
            for name, value in settings.items()
            if name not in config
            and name not in ("model", "out")
            and value != ""
            and value is not False
        }
    else:
        settings = {}
    base = known["base"]
    own = {name: value for name, value in metadata.items() if name not in aside}
    return [
        *_text.pairs(
            {
                "adapter": known["path"],
                "size": f"{_words.size(known['bytes'])} on disk, {known['parameters']:,} trained "
                f"parameters in {len(leaves)} leaves, {', '.join(_dtypes(leaves))}",
                "method": ", ".join(f"{kind} ({count})" for kind, count in kinds.items()),
                "targets": _shown(config["targets"]),
                "rank": _text.span(ranks) if ranks else None,
                "scaling": f"{_text.span(scalings)} (alpha {config['alpha']:g})"
                if scalings
                else None,
                "also": _text.listed(further),
                "base": _say_base(base),
                "trained": _text.listed(settings),
                "system": _words.one_line(str(metadata.get("system") or "")),
                "notes": _text.listed(own),
            }
        ),
        "",
        *_text.table(
            ("leaf", "method", "weight", "rank", "parameters"),
            [
                (
                    leaf["path"],
                    leaf["kind"],
                    _shape(leaf["shape"]),
                    _text.span(_each(leaf["rank"])) if leaf["rank"] else "-",
                    leaf["parameters"],
                )
                for leaf in leaves
            ],
        ),
    ]


def _leaf(path: str, node: Node, config: LoraConfig) -> dict[str, Any]:
    trained = [getattr(node, name) for name in node.trainable]
    rank: Any = node.rank
    scaling: list[float] = []
    if node.targeted:
        ranks, alphas = config.ranks_for(path), config.alphas_for(path)
        rank = list(ranks) if isinstance(ranks, tuple) else rank
        layers = max((len(each) for each in (ranks, alphas) if isinstance(each, tuple)), default=1)
        each = rank if isinstance(rank, list) else [rank] * layers
        scaling = [config.scaling_for(path, its, layer) for layer, its in enumerate(each)]
    return {
        "path": path,
        "kind": node.kind,
        "shape": list(node.shape),
        "rank": rank,
        "scaling": sorted(set(scaling) - {0.0}),
        "parameters": sum(math.prod(array.shape) for array in trained),
        "dtype": str(trained[0].dtype) if trained else None,
    }


def _base(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(fingerprint, sort_keys=True)
    return {
        "dtypes": sorted({leaf["dtype"] for leaf in fingerprint.values()}),
        "leaves": len(fingerprint),
        "parameters": sum(math.prod(leaf["shape"]) for leaf in fingerprint.values()),
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def _say_base(base: Mapping[str, Any]) -> str:
    said = [str(base["model"] or "unnamed")]
    if "leaves" in base:
        said += [
            "/".join(base["dtypes"]),
            f"{base['parameters']:,} parameters in {base['leaves']} leaves",
            f"fingerprint {base['fingerprint']}",
        ]
    return ", ".join(said)


def _fresh() -> dict[str, Any]:
    """The fields of a configuration that says nothing, as JSON has them."""
    return {
        field.name: default
        for field in dataclasses.fields(LoraConfig)
        if (default := _default(field)) is not dataclasses.MISSING
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return list(value) if isinstance(value, tuple) else value  # as JSON has it


def _dtypes(leaves: list[dict[str, Any]]) -> list[str]:
    return sorted({leaf["dtype"] for leaf in leaves if leaf["dtype"]})


def _each(rank: Any) -> list[int]:
    return list(rank) if isinstance(rank, (list, tuple)) else [rank] if rank else []


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(each)}" for name, each in value.items())
    return " | ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _shape(shape: list[int]) -> str:
    return str(tuple(shape))
