"""Texts, or pairs of them, with labels: what an encoder or a decoder with a head learns to tell."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jlora import data, models
from jlora.tasks._rows import own_rows
from jlora.tasks._task import Task

_HEAD = "^classifier/"


class Classify(Task):
    """Rows of ``text``, perhaps ``second``, and ``label``; measured by accuracy and macro F1.

    The head trains whole. It is fresh unless the model's own has these very labels.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> import jlora
        >>> from jlora import finetune
        >>> row = '{"text": "Is %d odd?", "label": "%s"}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "rows.jsonl")
        ...     lines = [row % (n, "yes" if n % 2 else "no") for n in range(20)]
        ...     _ = path.write_text("\\n".join(lines))
        ...     task = jlora.tasks.Classify(finetune.Settings(data=(str(path),), task="classify"))
        ...     rows, held_out = task.rows()
        >>> len(rows), len(held_out), task.labels
        (18, 2, ('no', 'yes'))
    """

    unread = ("pack", "template", "train_on", "train_reasoning", "max_new_tokens")
    measures = MappingProxyType({"accuracy": "higher", "macro_f1": "higher"})
    quick_scores = True
    labels: tuple[str, ...] = ()  # known once `rows` was called
    _fresh: tuple[str, ...] = ()  # what `model` made anew of one

    def rows(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """All rows that can be used; some of them held out."""
        rows, held_out = own_rows(self, data.open_labelled)
        self.labels = self.settings.labels or data.labels_of(itertools.chain(rows, held_out))
        return rows, held_out

    def model(self, load: Callable[..., Any]) -> Any:
        """The model of the settings, with a head for the labels."""
        its = self.settings
        model = load(its.model, dtype=its.dtype, quantize=its.quantized, attention=its.attention)
        if its.max_length > model.config.longest:
            raise ValueError(
                f"--max-length {its.max_length} is more than the {model.config.longest} positions "
                f"of {its.model}"
            )
        if getattr(model.config, "labels", None) == self.labels:
            return model
        made = models.with_classifier(model, self.labels, jax.random.key(its.seed))
        self._fresh = models.fresh_leaves(model, made)
        return made

    def trains(self, model: Any) -> tuple[str, ...]:
        """The head, and a pooler that the model had not."""
        beside = (each for each in self._fresh if not each.startswith(_HEAD))
        return (_HEAD, *beside)

    def measurable(self, held_out: Sequence[Any], model: Any) -> Sequence[Any]:
        """All of them: what is too long is cut."""
        return held_out

    def examples(
        self, rows: Collection[Any], model: Any, *, folder: Path | None = None
    ) -> tuple[Sequence[Any], Any]:
        """Tokens within the tokenizer's frame, with the label's number."""
        return data.encode_labelled(
            rows,
            model.tokenizer,
            labels=self.labels,
            max_length=self.settings.max_length,
            folder=folder,
        )

    def batches(self, examples: Sequence[Any], *, shuffle: bool = True) -> data.LabelledBatches:
        """Batches of few lengths, in an order from the seed."""
        its = self.settings
        whole = functools.partial(data.LabelledBatches, examples, max_length=its.max_length)
        if not shuffle:
            return whole(batch_size=32, shapes=1, shuffle=False)
        return whole(batch_size=its.batch_size, seed=its.seed)

    def preview(self, model: Any, examples: Sequence[Any], count: int = 3) -> str:
        """The first rows and their labels."""
        rows = examples[:count]
        return "\n".join(
            f"{self.labels[row.label]}: {model.tokenizer.decode(row.tokens)}" for row in rows
        )

    def loss(self, model: Any, lora: Any = None) -> Callable[..., Any]:
        """The labels' cross entropy, summed over rows."""
        return functools.partial(models.classification_loss, model, remat=self.settings.remat)

    def scores(self, model: Any, held_out: Sequence[Any], *weights: Any) -> dict[str, Any]:
        """``accuracy``, ``macro_f1`` and the ``labels`` that the model gives."""
        wanted = [example.label for example in self.examples(held_out, model)[0]]
        found = self._labels_of(model, held_out, *weights)
        return {
            "accuracy": models.accuracy(wanted, found),
            "macro_f1": models.macro_f1(wanted, found),
            "labels": [self.labels[label] for label in found],
        }

    def _labels_of(self, model: Any, rows: Sequence[Any], *weights: Any) -> list[int]:
        texts = [(row["text"], row["second"]) if "second" in row else row["text"] for row in rows]
        shares = models.classify(model, texts, *weights, max_length=self.settings.max_length)
        return np.argmax(shares, axis=1).tolist()

    def about(self, held_out: Sequence[Any]) -> dict[str, Any]:
        """The labels in the order of the scores: a folder that is written has them."""
        return {"labels": list(self.labels)}

    def same(
        self, model: Any, held_out: Sequence[Any], scores: dict[str, Any], *weights: Any
    ) -> str:
        """Whether these weights give the labels that the scores say."""
        again = [self.labels[label] for label in self._labels_of(model, held_out, *weights)]
        alike = sum(got == before for got, before in zip(again, scores["labels"], strict=True))
        return f"the same label to {alike} of {len(again)} rows"

    def shown(self, held_out: Sequence[Any], scores: dict[str, dict[str, Any]]) -> str:
        """All scores, before and after."""
        lines = [f"\n{len(held_out)} held-out rows      loss    accuracy    macro F1"]
        for name, its in scores.items():
            shares = f"{100 * its['accuracy']:8.1f} %  {100 * its['macro_f1']:8.1f} %"
            loss = f"{'-':>8}" if its["loss"] is None else f"{its['loss']:8.3f}"
            lines.append(f"  {name:<16}  {loss}  {shares}")
        return "\n".join(lines)
