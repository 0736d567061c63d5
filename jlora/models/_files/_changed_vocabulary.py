"""An open model whose table of tokens is longer than its file's, or apart from its head."""

from __future__ import annotations

import dataclasses

import numpy as np

from jlora.models._files._stacking import Opened
from jlora.models._files._tensor import Tensor, all_at_once
from jlora.models._vocabulary import EMBED, HEAD, Vocabulary


def with_vocabulary(opened: Opened, vocabulary: Vocabulary) -> Opened:
    """The open model with further tokens, and with a head of its own where it shall be untied.

    Raises:
        ValueError: when rows are missing, or of another width than the model.
    """
    config = vocabulary.config(opened.config)
    shapes, held_in = dict(opened.shapes), {}
    embedding, head = opened.leaves[EMBED].name, opened.leaves[HEAD].name
    if opened.config.tied and not config.tied:
        shapes[head] = shapes.get(embedding, ())
        held_in[head] = embedding
        opened.check_head()
    added = {opened.leaves[path].name: rows for path, rows in vocabulary.rows.items()}
    for name, rows in added.items():
        tokens, *width = shapes.get(name, (0,))
        shapes[name] = (tokens + len(rows), *width)

    def tensor(name: str) -> Tensor:
        table = opened.tensor(held_in.get(name, name))
        if name not in added:
            return table

        def longer() -> np.ndarray:
            rows = table.whole()
            return np.concatenate([rows, added[name].astype(rows.dtype)])

        return all_at_once(tuple(shapes[name]), longer)

    return dataclasses.replace(
        opened,
        config=config,
        shapes=shapes,
        tensor=tensor,
        dtype=lambda name: opened.dtype(held_in.get(name, name)),
        ignored=set(opened.ignored) - ({head} if not config.tied else set()),
        second_head=opened.second_head if config.tied else None,
    )
