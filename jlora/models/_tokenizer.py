"""Text to tokens and back, and conversations to text, as the model's own files say."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

# For models without a chat template: plain text in which each turn ends with the end token.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "### {{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's vocabulary and its chat template.

    Attributes:
        vocabulary: a ``tokenizers.Tokenizer``.
        stop_ids: the tokens that end a turn, at least one.
        template: the chat template (Jinja); None where the model has none: `render` then writes
            each message as ``### role``, its content on the next line, and the end token.
        special: what templates may name: bos_token, eos_token, ...
    """

    vocabulary: Any
    stop_ids: tuple[int, ...]
    template: str | None
    special: Mapping[str, str]

    def encode(self, text: str) -> list[int]:
        """The tokens of the text. Special tokens in it are recognised, none is added."""
        return self.vocabulary.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens, special ones skipped."""
        return self.vocabulary.decode([int(token) for token in ids], skip_special_tokens=True)

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
    ) -> str:
        """The text of the conversation as the model was trained to read it.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what the assistant's answer begins after.

        Raises:
            ValueError: when the template refuses the messages, or tries what a sandbox forbids.
        """
        import jinja2

        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special,
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError) as error:
            raise ValueError(
                f"the model's chat template can't render {len(messages)} messages: "
                f"{type(error).__name__}: {error}"
            ) from None

    @functools.cached_property
    def _compiled(self) -> Any:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message):
            raise jinja2.TemplateError(message)

        def tojson(value, ensure_ascii=False, **options):  # Jinja's own escapes HTML
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.template or PLAIN)
