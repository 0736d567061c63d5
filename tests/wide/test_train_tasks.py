"""Other rows than one file of answers: labels, several files, rows that share sequences."""

import json

import pytest
from safetensors.numpy import load_file, save_file
from test_encoders import saved as saved_encoder

import train
from jlora import checkpoint, models, trainer
from jlora.__main__ import main


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """60 numbers and whether they are odd: of one token, so that a tiny model can tell."""
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    rows = [{"text": f"{n % 10}", "label": "odd" if n % 2 else "even"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unanswered(flags):
    """The flags without that of answers, which labels are none of."""
    return [flag for flag in flags if "--max-new-tokens" not in flag]


def test_a_decoder_learns_labels(flags, labelled, tiny, tmp_path, capsys):
    out, other = tmp_path / "run", tmp_path / "other.jsonl"
    other.write_text("".join(labelled.read_text().splitlines(keepends=True)[:10]))
    of_labels = ["--task=classify", f"--data={labelled}", f"--eval-data={other}", "--steps=40"]
    strong = ["--learning-rate=0.02", "--batch-size=16", f"--out={out}"]
    assert train.main([*unanswered(flags), *of_labels, *strong]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["after"]["accuracy"] == results["after"]["macro_f1"] == 1
    assert results["before"]["accuracy"] < 1
    assert results["after"]["labels"] == ["even", "odd"] * 5
    told = capsys.readouterr().out
    assert "gives the same label to 10 of 10 rows" in told
    assert "accuracy" in told
    lora, _ = checkpoint.restore(out / "adapter")
    assert lora["classifier/kernel"].kind == "whole"
    assert main(["merge", f"--adapter={out / 'adapter'}", f"--out={tmp_path / 'merged'}"]) == 0
    assert models.load(tmp_path / "merged").config.labels == ("even", "odd")
    assert train.main([f"--out={out}", "--resume", "--steps=42"]) == 0


def test_an_encoder_that_had_no_pooler_trains_a_fresh_one(tmp_path):
    folder = saved_encoder(tmp_path, max_position_embeddings=21)  # no multiple of 8
    out, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler." not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors")
    words = [{"text": f"a c{' a' * n}", "label": "odd" if n % 2 else "even"} for n in range(20)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in words))
    of_labels = ["--task=classify", f"--model={folder}", f"--data={rows}", f"--out={out}"]
    assert train.main([*of_labels, "--steps=2", "--rank=2", "--max-length=21"]) == 0
    lora, _ = checkpoint.restore(out / "adapter")
    assert {path for path, node in lora.items() if node.kind == "whole"} == {
        f"{module}/{leaf}"
        for module in ("pooler", "classifier/out_proj")
        for leaf in ("kernel", "bias")
    }
    assert main(["merge", f"--adapter={out / 'adapter'}", f"--out={tmp_path / 'merged'}"]) == 0
    merged = models.load(tmp_path / "merged")
    assert (merged.config.labels, merged.config.pooler) == (("even", "odd"), True)


def test_labels_that_are_given_are_the_only_ones(flags, labelled, tmp_path, capsys):
    of_labels = ["--task=classify", f"--data={labelled}", "--labels=no,odd"]
    assert train.main([*unanswered(flags), *of_labels, f"--out={tmp_path / 'run'}"]) == 2
    assert "even" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_files_are_mixed_by_weight(flags, rows, tmp_path):
    more, out = tmp_path / "more.csv", tmp_path / "run"
    more.write_text("prompt,completion\n" + "".join(f"{n} now?,other\n" for n in range(30)))
    sources = ["--data", str(rows), f"{more}=2"]
    plain = [flag for flag in flags if not flag.startswith("--data")]
    assert train.main([*plain, *sources, f"--out={out}"]) == 0
    assert trainer.Run(out).settings["settings"]["data"] == [str(rows), f"{more}=2"]
    seen = trainer.read_metrics(out / "metrics.jsonl")
    assert train.main([f"--out={out}", "--resume"]) == 0  # the same rows again
    assert trainer.read_metrics(out / "metrics.jsonl") == seen


def test_rows_share_sequences(flags, tmp_path):
    out = tmp_path / "run"
    packed = ["--pack", "--batch-size=2", "--accumulate=2", "--steps=4", f"--out={out}"]
    assert train.main([*flags, *packed]) == 0
    rows = trainer.read_metrics(out / "metrics.jsonl")
    assert all(row["tokens_processed"] == 2 * 96 for row in rows)
    assert max(row["tokens"] for row in rows) > 96
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_precision_is_that_of_the_run_alone(flags, tmp_path, monkeypatch):
    seen = []
    whole = models.answer_loss
    monkeypatch.setattr(
        models,
        "answer_loss",
        lambda *args, **options: (
            seen.append(train.jax.config.jax_default_matmul_precision) or whole(*args, **options)
        ),
    )
    highest = ["--precision=highest", "--steps=1", f"--out={tmp_path / 'run'}"]
    assert train.main([*flags, *highest]) == 0
    assert set(seen) == {"highest"}
    assert train.jax.config.jax_default_matmul_precision is None
