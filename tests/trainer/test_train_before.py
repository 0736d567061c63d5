"""What can be seen before a run: what it will need, and the rows as the model will see them."""

import json
import re

import pytest

import train
from jlora import finetune, trainer
from jlora.finetune import _dry_run


@pytest.fixture
def rows_of_two(tmp_path):
    """Rows of two turns each."""
    path = tmp_path / "turns.jsonl"
    said = lambda role, text: {"role": role, "content": text}  # noqa: E731
    turns = [
        [
            said("user", f"{n}?"),
            said("assistant", "one"),
            said("user", "and?"),
            said("assistant", "two"),
        ]
        for n in range(20)
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return path


def test_a_dry_run_says_what_a_step_needs_and_writes_nothing(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([*flags, f"--out={out}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert not out.exists()
    for word in ("frozen", "adapter", "optimizer", "temporary", "peak", "FLOPs", "tokens"):
        assert re.search(rf"^{word} +\S", told, re.M), word
    assert re.search(r"^steps +8, 10 an epoch", told, re.M)
    assert told.count("example ") == 3
    assert "[[" in told


def test_a_dry_run_counts_what_the_run_takes(flags, finished, tmp_path):
    settings = finetune.parse([*flags]).settings
    run = _dry_run.prospect(settings, tmp_path)
    its = run.training()
    lora = sum(leaf.size for leaf in _dry_run.jax.tree.leaves(run.lora))
    assert its.adapter == 4 * lora
    assert its.optimizer > its.adapter  # two moments of all that trains
    more = run.training(remat="full", accumulate=4)
    assert more.temporary < its.temporary


def test_a_preview_marks_what_trains(flags, rows_of_two, capsys):
    shown = [*flags, f"--data={rows_of_two}", "--preview"]
    assert train.main(shown) == 0
    assert "[[one" in capsys.readouterr().out
    assert train.main([*shown, "--train-on=last"]) == 0
    told = capsys.readouterr().out
    assert "[[one" not in told
    assert "[[two" in told


def test_out_of_memory_says_what_would_fit(flags, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise MemoryError

    least = _dry_run.prospect(finetune.parse([*flags]).settings, tmp_path).training("full", 4)
    monkeypatch.setattr(trainer, "iterate", full)
    monkeypatch.setattr(trainer, "memory_limit", lambda: least.peak)
    assert train.main([*flags, f"--out={tmp_path / 'run'}"]) == 1
    assert "memory ran out. what fits 0.0 GiB: --remat full --accumulate 4" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(trainer, "memory_limit", lambda: 1000)
    assert train.main([*flags, f"--out={tmp_path / 'other'}"]) == 1
    assert "no batch of these rows fits" in capsys.readouterr().err
