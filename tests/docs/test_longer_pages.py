"""The pages of Start and How it works that train: code prints what they say, commands run."""

import io
import re
import shlex

import pytest
from fast_compiles import compiled_as_ever
from first_pages import DOCS, printed_by, says
from tiny import save_tiny_llama

from jlora.__main__ import main

LONGER = ["start/five-verbs", *(f"explanation/{name}" for name in
          ("mathematics", "laws", "costs", "paper"))]  # fmt: skip
PLAIN = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", LONGER)
def test_a_longer_page_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with compiled_as_ever():
        for promised, found in printed_by(DOCS / f"{name}.md"):
            assert promised is None or says(promised, found), found


def on_tiny_models(command):
    """The page's command on a small model of this folder in the place of SmolLM2."""
    words = ["./smollm2" if word == "smollm2" else word for word in command]
    more = {  # the tiny model has 256 positions
        "train": {"--model": "./smollm2", "--max-length": "200"},
        "generate": {"--max-new-tokens": "9"},
        "chat": {"--max-new-tokens": "9"},
    }.get(words[0], {})
    return [*words, *(each for name in more if name not in words for each in (name, more[name]))]


def test_every_command_of_the_tuned_model_runs(tmp_path, monkeypatch, capsys):
    """In the page's order, each on what those before it left."""
    monkeypatch.chdir(tmp_path)
    for folder in ("smollm2", "my-model"):
        save_tiny_llama(tmp_path / folder)
    page = (DOCS / "start/tuned-model.md").read_text(encoding="utf-8")
    namespace, commands = {}, []
    for language, block in PLAIN.findall(page):
        if language == "python":
            exec(block, namespace)
            continue
        for line in block.splitlines():
            module, *command = shlex.split(line.removeprefix("python -m "))
            assert module == "jlora", line
            monkeypatch.setattr("sys.stdin", io.StringIO("tennis\n/quit\n"))
            assert main(on_tiny_models(command)) == 0, line
            commands.append(command[0])
    assert {*commands} == {"train", "generate", "chat", "info", "merge", "export"}
    told = re.search(r"```text\n(runs/.*?)```", page, flags=re.DOTALL)[1]
    folder, *files = re.findall(r"^ *(\S+)", told, flags=re.MULTILINE)
    assert {each.rstrip("/") for each in files} == {
        path.name for path in (tmp_path / folder).iterdir() if not path.name.startswith(".")
    }
    said = capsys.readouterr().out
    for line in re.findall(r"^(\w[\w ]+?)  ", page, flags=re.MULTILINE):
        assert re.search(rf"^{line}", said, flags=re.MULTILINE), line
