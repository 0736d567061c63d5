"""A model in a file, a folder or on the hub: whether it loads, as what, and what is in the way."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jlora import _hub, _words
from jlora._files import read_json_object
from jlora._info import _text

KIND = "model"


def facts(source: str | Path) -> dict[str, Any]:
    """What its configuration and the headers of its files say; no weight is read.

    Raises:
        ValueError: when there is no such model.
    """
    from jlora import models
    from jlora.models._files import _huggingface, _source

    path = Path(source).expanduser()
    remote = not path.exists() and str(source) != models.DEFAULT and _hub.is_id(str(source))
    where = _huggingface.described(str(source)) if remote else _source.located(source)
    known: dict[str, Any] = {"kind": KIND, "path": str(source), "in_the_way": None}
    try:
        opened = _huggingface.opened_remotely(str(source)) if remote else _source.opened(where)
        opened.check()
    except ValueError as error:
        return {**known, "loads": False, "in_the_way": str(error), **_said(where)}
    shapes = {name: shape for name, shape in opened.shapes.items() if name not in opened.ignored}
    config = opened.config
    return {
        **known,
        "loads": True,
        "architecture": config.family,
        "bytes": None if remote else _bytes(where),
        "parameters": sum(map(math.prod, shapes.values())),
        "dtypes": dict(collections.Counter(opened.dtype(name).name for name in shapes)),
        "layers": config.layers,
        "width": config.width,
        "vocabulary": config.vocabulary,
        "max_length": config.max_length,
        "labels": list(config.labels),
        "encoder": isinstance(config, models.EncoderConfig),
        "tied": config.tied,
        "template": opened.tokenizer.template is not None,
        "all_linear": _all_linear(opened),
        "left_aside": list(opened.told),
    }


def lines(known: Mapping[str, Any]) -> list[str]:
    """The facts to be read."""
    if not known["loads"]:
        about = {"model": known["path"], "kind": known.get("architecture"), "loads": "no"}
        return [*_text.pairs(about), "", *known["in_the_way"].splitlines()]
    size = [f"{known['parameters']:,} parameters", ", ".join(known["dtypes"])]
    size += [] if known["bytes"] is None else [f"{_words.size(known['bytes'])} on disk"]
    about = _text.pairs(
        {
            "model": known["path"],
            "kind": known["architecture"] + (", an encoder" if known["encoder"] else ""),
            "loads": "yes",
            "size": ", ".join(size),
            "shape": f"{known['layers']} layers of width {known['width']}, "
            f"{known['vocabulary']:,} tokens, {known['max_length']:,} positions, " + _head(known),
            "template": None
            if known["encoder"] or known["labels"]
            else _TEMPLATES[known["template"]],
            "aside": "; ".join(known["left_aside"]),
        }
    )
    rows = [(leaf["path"], str(tuple(leaf["shape"]))) for leaf in known["all_linear"]]
    return [*about, "", *_text.table(('what "all-linear" adapts', "weight"), rows)]


_TEMPLATES = {True: "for conversations", False: "none: no chat"}


def _writes(known: Mapping[str, Any]) -> bool:
    return not (known["encoder"] or known["labels"])


def _head(known: Mapping[str, Any]) -> str:
    if known["encoder"] and not known["labels"]:
        return "no head"
    if known["labels"]:
        return f"a head with {len(known['labels'])} labels: {_words.named(known['labels'])}"
    return "the head is the embedding" if known["tied"] else "a head of its own"


def _all_linear(opened: Any) -> list[dict[str, Any]]:
    """The leaves that ``targets="all-linear"`` finds in the model."""
    import jax
    import jax.numpy as jnp

    import jlora
    from jlora import models
    from jlora.models._files._source import outlined

    model: models.Model = outlined(opened)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    axes = jlora.trace_axes(model.apply, model.params, tokens)
    config = jlora.LoraConfig(targets="all-linear", rank=1)
    _, lora = jax.eval_shape(
        lambda params, key: jlora.split(params, config, key, axes=axes),
        model.params,
        jax.random.key(0),
    )
    return [{"path": path, "shape": list(node.shape)} for path, node in lora.items()]


def _said(where: Path) -> dict[str, Any]:
    """What a folder that does not load calls itself."""
    try:
        return {"architecture": str(read_json_object(where / "config.json").get("model_type"))}
    except ValueError:
        return {"architecture": None}


def _bytes(where: Path) -> int:
    if where.is_file():
        return where.stat().st_size
    return sum(file.stat().st_size for file in where.glob("*.safetensors"))
