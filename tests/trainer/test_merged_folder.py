"""The folder that a merge writes: its tokenizer is the adapter's, and it is there whole or not."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from folders import edit

from jlora import models
from jlora.models._files import _complete_folder, _own_tokenizer

BASE, OWN = "{{ messages[0].content }}", "{{ messages[-1].content }}"


def template_into(folder, where, template):
    if where == "jinja":
        (folder / "chat_template.jinja").write_text(template)
    if where == "config":
        edit(folder / "tokenizer_config.json", chat_template=template)


@pytest.mark.parametrize("tokenizer", [True, False], ids=["tokenizer", "no tokenizer"])
@pytest.mark.parametrize("own", ["jinja", "config", None])
@pytest.mark.parametrize("base", ["jinja", "config", None])
def test_a_merged_model_has_the_template_that_its_adapter_was_trained_with(
    tiny, tmp_path, base, own, tokenizer
):
    source, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    shutil.copytree(tiny, source)
    edit(source / "tokenizer_config.json", chat_template=None)
    adapter.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json") if tokenizer else ():
        shutil.copy(source / name, adapter)
    if not tokenizer and own == "config":
        (adapter / "tokenizer_config.json").write_text("{}")
    template_into(source, base, BASE)
    template_into(adapter, own, OWN)
    settings = {"eos_token_id": 1}
    at_first = _own_tokenizer.of_folder(source, settings)
    trained = _own_tokenizer.beside(adapter, at_first, vocabulary=300) or at_first
    shutil.copytree(source, out)
    files = _own_tokenizer.in_place_of(_own_tokenizer.files_of(source, ["*"]), adapter, trained)
    for name, content in files.items():
        (out / name).write_bytes(content)
    merged = _own_tokenizer.of_folder(out, settings)
    assert trained.template == (OWN if own else BASE if base else None)
    for field in ("template", "stop_ids", "special", "begin"):
        assert getattr(merged, field) == getattr(trained, field)


def test_export_writes_the_tokenizer_that_goes_with_the_adapter(tiny, tmp_path):
    source, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny, source)
    template_into(source, "jinja", BASE)
    adapter.mkdir()
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": OWN}))
    merged = models.outline(models.export(source, tmp_path / "out", tokenizer_of=adapter))
    assert merged.tokenizer.template == OWN
    assert merged.tokenizer.special["bos_token"] == "<|im_start|>"


def test_no_other_form_of_the_bases_tokenizer_stands_beside_the_adapters(make_llama, tmp_path):
    source, adapter = make_llama(tmp_path / "base", layers=1), tmp_path / "adapter"
    adapter.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, adapter)
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "LICENSE"):
        (source / name).write_text("{}")
    (adapter / "added_tokens.json").write_text('{"<|im_end|>": 1}')
    out = models.export(source, tmp_path / "out", tokenizer_of=adapter)
    there = {path.name for path in out.iterdir()}
    assert there & {"vocab.json", "merges.txt", "tokenizer.model"} == set()
    assert "LICENSE" in there
    assert (out / "added_tokens.json").read_text() == '{"<|im_end|>": 1}'


@pytest.fixture
def a_dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(out, text, **options):
    out = _complete_folder.claim(out, **{"overwrite": True, "sources": (), **options})
    with _complete_folder.complete(out, 10) as aside:
        (aside / _complete_folder.MARK).write_text(json.dumps(text))


def test_a_process_with_the_number_of_one_that_was_killed_can_write(tmp_path):
    (tmp_path / f".out.unfinished-{os.getpid()}").mkdir()
    write(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_moved_aside_when_its_process_was_killed_is_put_back(tmp_path, a_dead_process):
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / f".out.former-{a_dead_process}")
    with pytest.raises(ValueError, match="out is not empty"):
        write(tmp_path / "out", "new", overwrite=False)
    assert json.loads((tmp_path / "out" / _complete_folder.MARK).read_text()) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_former_folder_that_could_not_be_removed_is_removed_by_the_next(tmp_path, a_dead_process):
    write(tmp_path / "out", "old")
    (tmp_path / f".out.former-{a_dead_process}").mkdir()
    (tmp_path / f".out.former-{os.getppid()}").mkdir()  # of one that still runs
    write(tmp_path / "out", "new")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out", f".out.former-{os.getppid()}"}
