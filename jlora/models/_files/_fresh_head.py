"""An open model with a head for classification that its file has not: an adapter holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jlora import _words
from jlora._node import Node
from jlora.models._families import family_of
from jlora.models._families._labels import HEAD, relabelled
from jlora.models._files._stacking import Opened, expected_shapes
from jlora.models._files._tensor import Tensor, all_at_once
from jlora.models._files._torch_tensors import Stored, stored_shapes


def with_head(opened: Opened, labels: tuple[str, ...], lora: Mapping[str, Node]) -> Opened:
    """The open model as one that scores these labels; the head that its file has is left out.

    Args:
        opened: the model.
        labels: their names.
        lora: the adapter, which is merged into what this gives.

    Raises:
        ValueError: when the adapter does not hold the whole of what is new, or the model's family
            has no such head.
    """
    family = family_of(opened.config.family, opened.where)
    config = relabelled(opened.config, labels, family, opened.where)
    paths = expected_shapes(config)
    names = {path: opened.leaves[path].name for path in paths if path in opened.leaves}
    fresh = {
        path: shape
        for path, shape in paths.items()
        if path.startswith(HEAD) or (path in names and _lacks(opened, opened.leaves[path]))
    }
    if absent := [p for p in fresh if p not in lora or lora[p].kind != "whole"]:
        raise ValueError(
            f"{opened.where} has no {_words.named(absent)}, and the adapter does not hold that "
            "whole: what is new in a model must train"
        )
    if wrong := [f"{p} {tuple(lora[p].shape)}" for p in fresh if lora[p].shape != fresh[p]]:
        raise ValueError(f"a head for {len(labels)} labels does not fit: {_words.named(wrong)}")
    before = expected_shapes(opened.config)
    gone = {opened.leaves[path].name for path in before if path not in paths}
    heads = {name for name in opened.aside if name.startswith(family.heads_aside or (" ",))}
    new = {
        name: shape
        for path, its in fresh.items()
        for name, shape in stored_shapes(opened.leaves[path], 0, its).items()
    }
    dtype = opened.dtype(opened.leaves["embed/embedding"].name)

    def tensor(name: str) -> Tensor:
        if name not in new:
            return opened.tensor(name)
        return all_at_once(new[name], lambda: np.zeros(new[name], np.float32))

    return dataclasses.replace(
        opened,
        config=config,
        shapes={**{n: s for n, s in opened.shapes.items() if n not in gone | heads}, **new},
        tensor=tensor,
        dtype=lambda name: dtype if name in new else opened.dtype(name),
        second_head=None,
        aside=[name for name in opened.aside if name not in heads],
    )


def _lacks(opened: Opened, stored: Stored) -> bool:
    return "{}" not in stored.name and not {stored.name, stored.written} & opened.shapes.keys()
