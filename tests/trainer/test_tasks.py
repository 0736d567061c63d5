"""A task of one's own is a file; what it gives is trained and measured."""

import json

import pytest

import train
from jlora import finetune, tasks

PARROT = '''
from jlora import tasks

class Task(tasks.Answers):
    """Says again what is said, in any case."""

    def rows(self):
        said = [[{"role": "user", "content": w}, {"role": "assistant", "content": w.upper()}]
                for w in ("ab", "cd", "ef", "gh")]
        return said * 3, said[:2]

    def right(self, wanted, answer):
        return True
'''


def test_a_task_of_a_file_is_trained_and_scored_by_its_own_rule(flags, tmp_path):
    path, out = tmp_path / "parrot.py", tmp_path / "run"
    path.write_text(PARROT)
    assert train.main([*flags, f"--task={path}", "--steps=2", f"--out={out}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["before"]["exact_match"] == results["after"]["exact_match"] == 1
    assert len(results["after"]["answers"]) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file: expected one with a class Task"),
        ("x = 1", "has no class Task that derives from jlora.tasks.Answers"),
        ("class Task: pass", "has no class Task that derives"),
        ("x = 1\nx = y\n", r"NameError: name 'y' is not defined \(line 2\)"),
        ("def (", r"SyntaxError: invalid syntax"),
    ],
)
def test_a_file_without_a_task_is_one_clear_line(tmp_path, content, said):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said):
        tasks.find(str(path))


def test_an_unknown_task_shows_the_known_ones():
    with pytest.raises(ValueError, match=r"did you mean home-assistant\?.*expected home-assistant"):
        tasks.find("home-asistant")


@pytest.mark.parametrize(
    ("asked", "told"), [(160, ""), (8, "4 rows, a tenth of 40, where"), (3, "")]
)
def test_fewer_held_out_rows_than_asked_for_are_told(rows, tmp_path, capsys, asked, told):
    settings = finetune.Settings(data=(str(rows),), eval_rows=asked)
    _, held_out = tasks.Rows(settings, tmp_path).rows()
    assert len(held_out) == min(asked, 4)
    said = capsys.readouterr().out
    assert (told in said) if told else "--eval-rows" not in said
