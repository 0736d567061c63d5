"""Every command of the page of adapters for llama.cpp runs, in its order, on a small model."""

import re
import shlex

import folders
import gguf_toys
from first_pages import DOCS
from tiny import TEMPLATE, save_tiny_llama

from jlora import checkpoint, models
from jlora.__main__ import main


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders.to_gguf(
        save_tiny_llama(tmp_path / "tiny"),
        tmp_path / "model.gguf",
        header=[("add_chat_template", TEMPLATE)],
    )
    model = models.load("model.gguf")
    lora, config = gguf_toys.adapter(model, "(q|down)_proj")
    about = {"model": "model.gguf", "system": "Be brief."}
    checkpoint.save("runs/mine/adapter", lora, config, base=model.params, metadata=about)
    page = (DOCS / "guides/gguf-adapters.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m jlora (.*)$", page, flags=re.MULTILINE)
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert len(commands) == 6
    assert sorted(path.name for path in (tmp_path / "for-ollama").iterdir()) == [
        "Modelfile",
        "README.md",
        "adapter.gguf",
    ]
    assert "mine.gguf (llama.cpp)" in capsys.readouterr().out
