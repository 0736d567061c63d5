"""A task whose rows end in the answer that the model shall give."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jlora import data, models
from jlora.tasks._compared import compared
from jlora.tasks._task import Task


class Answers(Task):
    """Conversations whose last message is the answer: trained on answers, scored by exact match.

    A task of your own overrides `rows`, and `right` where another answer is right too.

    Example:
        >>> import jlora
        >>> task = jlora.tasks.Rows(None)
        >>> task.right("42", "<think>6 * 7</think>42"), task.right("42", "43")
        (True, False)
    """

    measures = MappingProxyType({"exact_match": "higher"})

    def right(self, wanted: str, answer: str) -> bool:
        """Whether the answer is as good as the row's own; reasoning does not count."""
        return data.without_reasoning(answer) == data.without_reasoning(wanted)

    def model(self, load: Callable[..., Any]) -> models.Model:
        """The decoder of the settings.

        Raises:
            ValueError: when it can't be loaded, writes no answers, or is too short for the rows.
        """
        its = self.settings
        model = load(
            its.model,
            dtype=its.dtype,
            quantize=its.quantized,
            attention=its.attention,
            template=its.template,
            date=its.date,
        )
        if isinstance(model, models.EncoderModel):
            raise ValueError(
                f"{its.model} is an encoder ({model.config.family}), which writes no answers: "
                "expected a decoder, or --task classify"
            )
        longest = its.max_length + its.max_new_tokens
        if longest > model.config.max_length:
            raise ValueError(
                f"--max-length {its.max_length} and --max-new-tokens {its.max_new_tokens} are more "
                f"than the {model.config.max_length} positions of {its.model}"
            )
        return model

    def measurable(self, held_out: Sequence[Any], model: Any) -> list[data.Messages]:
        """Those whose prompt leaves room for an answer."""
        return data.answerable(held_out, model.tokenizer, max_length=self.settings.max_length)

    def examples(
        self, rows: Collection[Any], model: Any, *, folder: Path | None = None
    ) -> tuple[Sequence[Any], Any]:
        """Tokens of whole conversations, with what trains in each."""
        return data.encode(
            rows,
            model.tokenizer,
            folder=folder,
            max_length=self.settings.max_length,
            train_on=self.settings.train_on,
            train_reasoning=self.settings.train_reasoning,
        )

    def batches(
        self, examples: Sequence[Any], *, shuffle: bool = True
    ) -> data.Batches | data.PackedBatches:
        """Batches of few shapes, or of sequences that rows share, in an order from the seed."""
        its = self.settings
        most = its.max_length
        if not shuffle:
            held_out = {"batch_size": MEASURED_AT_ONCE, "shapes": 1, "shuffle": False}
            return data.Batches(examples, max_length=most, **held_out)
        of_run = {"batch_size": its.batch_size, "seed": its.seed}
        if its.pack:
            return data.PackedBatches(examples, length=most, **of_run)
        return data.Batches(examples, max_length=most, **of_run)

    def preview(self, model: Any, examples: Sequence[Any], count: int = 3) -> str:
        """The text of the first rows, what trains of it marked."""
        return data.preview(examples, model.tokenizer, count, terminal=sys.stdout.isatty())

    def loss(self, model: Any, lora: Any = None) -> Callable[..., Any]:
        """The answers' cross entropy, summed over their tokens."""
        adapted = {path.split("/")[0] for path in lora or ()}
        head_trains = lora is None or bool(adapted & set(model.head_names))
        return functools.partial(
            models.answer_loss, model, remat=self.settings.remat, head_trains=head_trains
        )

    def scores(self, model: Any, held_out: Sequence[Any], *weights: Any) -> dict[str, Any]:
        """``exact_match`` and the ``answers``; rows of plain text ask for none."""
        asked = [at for at, row in enumerate(held_out) if asks(row)]
        answers = [""] * len(held_out)
        for at, got in zip(asked, self.answers_to(model, held_out, asked, *weights), strict=True):
            answers[at] = got
        right = [self.right(data.text_of(held_out[at][-1]), answers[at]) for at in asked]
        match = sum(right) / len(right) if right else None
        return {"exact_match": match, "answers": answers}

    def answers_to(
        self, model: Any, held_out: Sequence[Any], which: Sequence[int], *weights: Any
    ) -> list[str]:
        """The model's greedy answers to these of the held-out rows, without their own."""
        return models.answer(
            model,
            [held_out[at][:-1] for at in which],
            *weights,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=max(1, min(64, len(which))),
        )

    def same(self, model: Any, held_out: Sequence[Any], scores: Any, *weights: Any) -> str:
        """Whether these weights answer as the scores say, on the first few rows."""
        checked = [at for at, row in enumerate(held_out) if asks(row)][:CHECKED]
        again = self.answers_to(model, held_out, checked, *weights)
        alike = sum(got == scores["answers"][at] for at, got in zip(checked, again, strict=True))
        return f"the same answer to {alike} of {len(checked)} rows" if checked else ""

    def shown(self, held_out: Sequence[Any], scores: dict[str, dict[str, Any]]) -> str:
        """Some answers and all scores, before and after."""
        return compared(held_out, scores)

    def command(self, adapter: Path, held_out: Sequence[Any]) -> str:
        """The adapter asked the first question."""
        asked = next((data.text_of(row[-2]) for row in held_out if asks(row)), "...")
        return f"python -m jlora generate --adapter {adapter} --prompt {json.dumps(asked)}"

    def about(self, held_out: Sequence[Any]) -> dict[str, Any]:
        """The system message, if all rows have the same one: answers need it again."""
        first = (row[0] for row in held_out)
        found = {data.text_of(each) if each["role"] == "system" else None for each in first}
        return {"system": found.pop() if len(found) == 1 else None}


MEASURED_AT_ONCE = 16  # held-out rows
CHECKED = 32  # held-out rows on which the saved, merged model must answer as the adapted one


def asks(row: data.Messages) -> bool:
    """Whether the row has a question: one of plain text has none."""
    return len(row) > 1
