"""The default task: a sentence for Home Assistant's voice assistant, answered by one JSON call."""

from __future__ import annotations

from jlora import data
from jlora.tasks._answers import Answers
from jlora.tasks._sentences import home_assistant


class HomeAssistant(Answers):
    """Sentences sampled from Home Assistant's own grammar; the held-out ones use other templates.

    Another task is written like this one: `rows` gives conversations to train on and to measure
    on, each with the wanted answer last. `Answers` does the rest; where other answers than the very
    same are right too, override its `right`.

    Example:
        >>> import jlora
        >>> from jlora import finetune
        >>> settings = finetune.Settings(train_rows=5, eval_rows=2)
        >>> rows, held_out = jlora.tasks.HomeAssistant(settings).rows()
        >>> len(rows), len(held_out)
        (5, 2)
    """

    unread = ("data", "columns", "labels", "eval_data", "eval_split")

    def rows(self) -> tuple[list[data.Messages], list[data.Messages]]:
        """As many of both as the settings say, by their seed."""
        return home_assistant(
            self.settings.train_rows, self.settings.eval_rows, seed=self.settings.seed
        )
