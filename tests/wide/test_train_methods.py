"""Every method through train.py: it learns, is saved whole, and works on the original model."""

import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import signalled_after

import jlora
import train
from jlora import checkpoint, models, trainer
from jlora._starts import _decomposed
from jlora.models._net import _loss

METHODS = {
    "dora": [
        *("--method", "dora", "--rslora", "--dropout", "0.1", "--train", "norm"),
        *("--layers", "1", "--exclude", "o_proj", "--tokens", '{"embed": [7, 9]}'),
        *("--rank-pattern", '{"down": 4}', "--alpha-pattern", '{"down": 5}'),
    ],
    "qalora": ["--method", "qalora", "--options", '{"block": 8}'],
    "eva": ["--init", "eva", "--targets", "all-linear"],
    "lora_ga": ["--init", "lora_ga", "--freeze-a"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_its_adapter_works_on_the_original_model(
    flags, tiny, make_llama, tmp_path, capsys, monkeypatch, method
):
    out = tmp_path / "run"
    if method == "eva":  # with a head, which is no linear layer, however the loss computes it
        tiny = make_llama(tmp_path / "untied", tied=False)
        flags = [*flags, f"--model={tiny}"]
        monkeypatch.setattr(_loss, "_SHARE", 0.1)  # a few rows at a time
    assert train.main([*flags, "--steps=4", *METHODS[method], f"--out={out}"]) == 0
    losses = [row["loss"] for row in trainer.read_metrics(out / "metrics.jsonl")]
    assert all(math.isfinite(loss) for loss in losses)
    scores = json.loads((out / "results.json").read_text())
    assert scores["after"]["loss"] < scores["before"]["loss"]
    assert "it gives the same answer to 3 of 3 rows" in capsys.readouterr().out
    base = models.load(tiny)
    lora, config = checkpoint.restore(out / "adapter", base=base.params)
    assert checkpoint.describe(out / "adapter")["metadata"]["settings"]["init"]
    ranks = {path: node.rank for path, node in lora.items()}
    kinds = {type(node).__name__ for node in lora.values()}
    if method == "dora":
        assert kinds == {"DoraWeight", "WholeWeight", "TokenRows"}
        assert not np.array_equal(lora["norm/scale"].value, base.params["norm"]["scale"])
        assert (config.method, config.rslora, config.dropout) == ("dora", True, 0.1)
        assert lora["embed/embedding"].tokens == (7, 9)
        down, up = lora["layers/mlp/down_proj/kernel"], lora["layers/mlp/up_proj/kernel"]
        np.testing.assert_allclose(down.scaling, [[0] * 4, [2.5] * 4])  # 5 / sqrt(4)
        assert (up.rank, list(up.scaling.any(-1))) == (3, [False, True])
        assert not any("o_proj" in path for path in lora)
    elif method == "lora_ga":
        assert set(ranks.values()) == {config.rank} == {6}  # twice the rank, on the original
    elif method == "qalora":
        assert kinds == {"QaLoraWeight"}
        assert lora["layers/mlp/down_proj/kernel"].a.shape == (2, 5, 3)  # of 40 inputs
    else:
        assert all("head" not in path and "embed" not in path for path in ranks)
        assert config.rank_pattern


def came_out_otherwise(*_, **__):
    raise AssertionError("a run that goes on computes no start anew")


OTHERWISE = {
    "pissa": (_decomposed, "strongest", ["--init", "pissa", "--dropout", "0.2"]),
    "dora": (_decomposed, "strongest", ["--init", "pissa_niter_2", "--method", "dora"]),
    "olora": (jnp.linalg, "qr", ["--init", "olora", "--dtype", "bfloat16"]),
    "eva": (jlora, "eva", ["--init", "eva"]),
    "lora_ga": (jlora, "lora_ga", ["--init", "lora_ga", "--lora-plus", "4"]),
}


@pytest.mark.parametrize("init", OTHERWISE)
def test_a_run_goes_on_from_its_own_start_where_another_would_come_out(
    flags, tmp_path, monkeypatch, init
):
    room, name, method = OTHERWISE[init]
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert train.main([*flags, *method, "--steps=5", f"--out={once}"]) == 0
    with signalled_after(2, signal.SIGINT):
        assert train.main([*flags, *method, "--steps=5", f"--out={twice}"]) == 128 + signal.SIGINT
    with monkeypatch.context() as patch:
        jax.clear_caches()  # the decomposition is compiled
        patch.setattr(room, name, came_out_otherwise)
        assert train.main([f"--out={twice}", "--resume"]) == 0
    first, second = (trainer.read_metrics(out / "metrics.jsonl") for out in (once, twice))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert len(first) == 5
    results = [trainer.Run(out).recorded("results") for out in (once, twice)]
    assert results[0] == results[1]
    (one, its), (other, same) = (checkpoint.restore(out / "adapter") for out in (once, twice))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert its == same
    if init != "eva":
        assert same.rank == 6  # twice the rank, on the original weights


def test_a_start_that_was_damaged_is_no_start(flags, tmp_path, capsys):
    out = tmp_path / "run"
    with signalled_after(2, signal.SIGINT):
        assert train.main([*flags, "--init=pissa", f"--out={out}"]) == 128 + signal.SIGINT
    array = max((out / "start").rglob("d/*"), key=lambda path: path.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert train.main([f"--out={out}", "--resume"]) == 2
    assert f"{out / 'start'}" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_kept_no_start_and_goes_on_from_one_made_anew(flags, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert train.main([*flags, "--init=pissa", "--steps=4", f"--out={once}"]) == 0
    with signalled_after(2, signal.SIGINT):
        asked = [*flags, "--init=pissa", "--steps=4", f"--out={twice}"]
        assert train.main(asked) == 128 + signal.SIGINT
    shutil.rmtree(twice / "start")
    assert train.main([f"--out={twice}", "--resume"]) == 0
    losses = [
        [row["loss"] for row in trainer.read_metrics(o / "metrics.jsonl")] for o in (once, twice)
    ]
    assert losses[0] == losses[1]
    assert (twice / "start" / "adapter.json").exists()


def test_a_run_that_draws_its_start_keeps_none(finished):
    assert not (finished / "start").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--method", "qlora"], "method is 'qlora': expected lora or dora"),
        (["--init", "random"], "init is 'random', but 'lora' takes kaiming, gaussian"),
        (["--lora-plus", "0"], "the ratio of LoRA+ is 0.0: expected a number above 0"),
        (["--dropout", "1"], "dropout is 1.0: expected a number from 0 to below 1"),
        (["--bias", "all"], "bias is 'all', but no leaf is called bias or b there"),
        (["--train", "nrm"], "train 'nrm' matches none of the 11 paths. The nearest: "),
    ],
)
def test_a_method_that_is_none_is_named_before_anything_is_written(
    flags, tmp_path, capsys, wrong, said
):
    out = tmp_path / "run"
    assert train.main([*flags, *wrong, f"--out={out}"]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
