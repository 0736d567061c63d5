"""The default task: a sentence for Home Assistant's voice assistant into one JSON call.

The grammar is the one in `home-assistant-intents`. A template such as
``<turn> on [<the>] {area} <light>`` stands for thousands of sentences: each is walked once at
random, nothing is enumerated. The call is what `hassil`, Home Assistant's own parser, reads in the
sentence; a sentence that it reads in two ways is dropped.

Left out: HassRespond, which is small talk (what it answers is not in the call), and numbers in
words ("fifty" for 50). The area of a speaker who names none is Home Assistant's to fill in, so it
is not in the call.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from jlora.data._messages import Messages
from jlora.tasks import _household

SYSTEM = "Reply with a JSON call."
HELD_OUT = 0.1  # share of the templates that only the test split uses
_LEFT_OUT = {"HassRespond"}
_HERE = "?"  # the area of a speaker who names none


class Template(NamedTuple):
    """One sentence template of the grammar, in one of the blocks that hold it."""

    text: str
    intent: str
    slots: dict[str, Any]  # those that its block of the grammar fixes
    domains: tuple[str, ...]  # of the devices that {name} may mean
    expression: Any  # hassil's

    @property
    def shape(self) -> tuple:
        """What the template's calls have in common: intent, fixed slots, filled slots."""
        return self.intent, json.dumps(self.slots, sort_keys=True), self._filled

    @property
    def _filled(self) -> tuple[str, ...]:
        return tuple(sorted({ref.slot_name for ref in self.expression.list_references()}))


def home_assistant(
    train: int, test: int, *, seed: int = 0
) -> tuple[list[Messages], list[Messages]]:
    """Conversations (train, test) of one sentence and one JSON call, the same on every platform.

    The splits share no template and no sentence. Every intent, with every combination of slots,
    that the test split asks for also has a template in the train split.

    Args:
        train: how many conversations to sample for training.
        test: how many to sample from the templates held out.
        seed: another seed holds out other templates and samples other sentences.

    Returns:
        train: for `jlora.data.encode`.
        test: held out.

    Raises:
        ValueError: when hassil or home-assistant-intents is not installed, or when the grammar has
            fewer sentences than were asked for.

    Example:
        >>> import json
        >>> import jlora
        >>> train, test = jlora.tasks.home_assistant(3, 1)
        >>> len(train), [message["role"] for message in train[0]]
        (3, ['system', 'user', 'assistant'])
        >>> sorted(json.loads(train[0][-1]["content"]))
        ['intent', 'slots']
    """
    grammar = _Grammar()
    seen, held_out = split_templates(grammar.templates, seed)
    tests = _sample(grammar, held_out, test, f"{seed}/test", without=())
    trains = _sample(grammar, seen, train, f"{seed}/train", without=tests)
    return [_messages(*row) for row in trains.items()], [_messages(*row) for row in tests.items()]


def split_templates(
    templates: Sequence[Template], seed: int
) -> tuple[list[Template], list[Template]]:
    """The templates (seen, held out): by their text, and no call's shape is held out whole."""
    by_text: dict[str, list[Template]] = {}
    left: dict[tuple, int] = {}
    for template in templates:
        by_text.setdefault(template.text, []).append(template)
        left[template.shape] = left.get(template.shape, 0) + 1
    rng = random.Random(f"{seed}/templates")
    order = sorted(by_text, key=lambda text: (rng.random(), text))
    held_out: set[str] = set()
    for text in order:
        if len(held_out) >= HELD_OUT * len(by_text):
            break
        shapes = [template.shape for template in by_text[text]]
        if all(left[shape] > shapes.count(shape) for shape in shapes):
            held_out.add(text)
            for shape in shapes:
                left[shape] -= 1
    return (
        [template for template in templates if template.text not in held_out],
        [template for template in templates if template.text in held_out],
    )


class _Grammar:
    """Home Assistant's English sentences, with the household's words in their lists."""

    def __init__(self):
        try:
            import hassil
            import home_assistant_intents
        except ImportError as error:
            raise ValueError(
                f"the default task needs {error.name!r}: pip install hassil home-assistant-intents"
            ) from None
        data = home_assistant_intents.get_intents("en")
        assert data is not None
        self.hassil = hassil
        self.intents = hassil.Intents.from_dict(data)
        strings = hassil.TextSlotList.from_strings
        self.words: dict[str, Any] = {
            "area": strings(_household.AREAS, name="area"),
            "floor": strings(_household.FLOORS, name="floor"),
            "name": hassil.TextSlotList.from_tuples(
                (
                    (name, name, {"domain": domain})
                    for domain, names in _household.NAMES.items()
                    for name in names
                ),
                name="name",
            ),
        } | {name: strings(words, name=name) for name, words in _household.WORDS.items()}
        self.templates = [
            Template(
                text=text,
                intent=name,
                slots=dict(block.slots),
                domains=_domains(block.requires_context),
                expression=hassil.parse_sentence(text).expression,
            )
            for name, intent in self.intents.intents.items()
            if name not in _LEFT_OUT
            for block in intent.data
            for text in block.sentence_texts
        ]

    def readings(self, sentence: str) -> set[str]:
        """Every call, as JSON, that the sentence may stand for."""
        results = self.hassil.recognize_all(
            sentence, self.intents, slot_lists=self.words, intent_context={"area": _HERE}
        )
        return {_json(result.intent.name, result.entities) for result in results}

    def sample(self, template: Template, rng: random.Random) -> str:
        """One sentence of the template."""
        return " ".join(self._walk(template.expression, template.domains, rng).split())

    def _walk(self, expression, domains: tuple[str, ...], rng: random.Random) -> str:
        h = self.hassil
        if isinstance(expression, h.TextChunk):
            return expression.original_text
        if isinstance(expression, h.RuleReference):
            rule = self.intents.expansion_rules[expression.rule_name]
            return self._walk(rule.expression, domains, rng)
        if isinstance(expression, h.ListReference):
            return self._say(expression.list_name, domains, rng)
        if isinstance(expression, h.Alternative):
            return self._walk(_pick(rng, expression.items), domains, rng)
        if isinstance(expression, h.Permutation):
            parts = _shuffled(rng, expression.items)
            return " ".join(self._walk(part, domains, rng) for part in parts)
        return "".join(self._walk(part, domains, rng) for part in expression.items)

    def _say(self, name: str, domains: tuple[str, ...], rng: random.Random) -> str:
        if name == "name":
            return _pick(rng, _household.NAMES[_pick(rng, domains)])
        values: Any = self.words.get(name) or self.intents.slot_lists[name]
        if isinstance(values, self.hassil.RangeSlotList):
            return str(_pick(rng, list(values.get_numbers())))
        return self._walk(_pick(rng, values.values).text_in, domains, rng)


def _domains(context: dict[str, Any]) -> tuple[str, ...]:
    domains = context.get("domain", ())
    return (domains,) if isinstance(domains, str) else tuple(domains)


def _json(intent: str, entities: dict[str, Any]) -> str:
    """The call in its one canonical form: sorted, no spaces, whole numbers without a point."""
    slots = {name: entity.value for name, entity in entities.items() if entity.value != _HERE}
    for name, value in slots.items():
        if isinstance(value, float) and value.is_integer():
            slots[name] = int(value)
    call = {"intent": intent, "slots": slots}
    return json.dumps(call, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _pick(rng: random.Random, items: Sequence) -> Any:
    """A random item, by the one method whose values Python promises not to change."""
    return items[int(rng.random() * len(items))]


def _sample(grammar: _Grammar, templates, count: int, seed: str, *, without) -> dict[str, str]:
    """``count`` sentences with their calls: of each template in turn, then of each shape in turn.

    The turns by shape see to it that a kind of call with one template is not drowned by those
    with many.
    """
    rng = random.Random(seed)
    by_shape: dict[tuple, list[Template]] = {}
    for template in templates:
        by_shape.setdefault(template.shape, []).append(template)
    taken = {sentence.lower() for sentence in without}
    rows: dict[str, str] = {}
    for _ in range(20 + 2 * count // len(templates)):
        of_each_shape = [_pick(rng, group) for group in by_shape.values()]
        for template in (*_shuffled(rng, templates), *_shuffled(rng, of_each_shape)):
            if len(rows) == count:
                return rows
            sentence = grammar.sample(template, rng)
            if sentence.lower() in taken:
                continue
            taken.add(sentence.lower())
            readings = grammar.readings(sentence)
            if len(readings) == 1:
                rows[sentence] = readings.pop()
    if len(rows) == count:
        return rows
    raise ValueError(f"the grammar gives {len(rows)} of the {count} sentences asked for")


def _shuffled(rng: random.Random, items: Sequence) -> list:
    return sorted(items, key=lambda _: rng.random())


def _messages(sentence: str, call: str) -> Messages:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": sentence},
        {"role": "assistant", "content": call},
    ]
