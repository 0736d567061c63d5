import json
import os
import subprocess
import sys

import pytest

from jlora.tasks import _household, _sentences, home_assistant


@pytest.fixture(scope="module")
def splits():
    return home_assistant(300, 60, seed=0)


def test_splits_share_no_sentence_and_hold_as_many_as_asked(splits):
    train, test = ([row[1]["content"].lower() for row in split] for split in splits)
    assert (len(set(train)), len(set(test))) == (300, 60)
    assert not set(train) & set(test)


@pytest.mark.parametrize("seed", [0, 7])
def test_no_template_is_in_both_splits_and_every_kind_of_call_is_learnable(seed):
    templates = _sentences._Grammar().templates
    seen, held_out = _sentences.split_templates(templates, seed)
    assert len(seen) + len(held_out) == len(templates)
    assert not {template.text for template in seen} & {template.text for template in held_out}
    assert {template.shape for template in held_out} <= {template.shape for template in seen}
    assert 0.09 < len(held_out) / len(templates) < 0.12


def test_every_sentence_means_one_call_to_home_assistants_own_parser(splits):
    grammar = _sentences._Grammar()
    for _, question, answer in splits[1]:
        assert grammar.readings(question["content"]) == {answer["content"]}


def test_calls_are_compact_sorted_json_of_known_intents(splits):
    for row in splits[0]:
        call = json.loads(row[-1]["content"])
        assert json.dumps(call, sort_keys=True, separators=(",", ":")) == row[-1]["content"]
        assert call["intent"].startswith("Hass")
    intents = {json.loads(row[-1]["content"])["intent"] for row in splits[0]}
    assert len(intents) > 30


def test_rows_are_the_same_in_every_process():
    code = (
        "import json; from jlora.tasks import home_assistant; "
        "print(json.dumps(home_assistant(20, 5, seed=3)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    other = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert json.loads(other) == list(home_assistant(20, 5, seed=3))


def test_no_name_of_the_household_stands_for_two_things():
    names = [name for names in _household.NAMES.values() for name in names]
    assert len({name.lower() for name in names}) == len(names)
    assert not set(names) & {*_household.AREAS, *_household.FLOORS}
