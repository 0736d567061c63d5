"""The code in README runs as it stands there."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run_and_print_what_readme_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict = {}
    exec("\n".join(blocks), namespace)
    printed = capsys.readouterr().out
    [promised] = re.findall(r"It prints\n\n```\n(.*?)\n```", README, flags=re.DOTALL)
    summary, losses = promised.splitlines()
    assert summary in printed
    # the loss is rounded; the difference is a rounding error of its own
    assert losses.split(";")[0] in printed
    assert namespace["difference"] < 1e-4
    assert "2 factored, 0 materialised" in printed
    assert "(2, 1, 10)" in printed
    assert "the same after PEFT's format: True" in printed
    for recipe in ("linen", "nnx", "equinox", "haiku", "your own"):
        [(first, second)] = re.findall(rf"^{recipe}: loss ([\d.]+) -> ([\d.]+)$", printed, re.M)
        assert float(second) < float(first)
    axes = "Axes(inputs=(2,), outputs=(1,), stack=(0,))"
    assert f"# {axes}" in README
    assert axes in printed
    nodes = "params/layers_0/bias: WholeWeight, params/layers_0/kernel: DoraWeight"
    assert f"# {nodes}" in README
    assert nodes in printed


def test_both_commands_stand_there_once():
    assert len(re.findall(r"^pip install.*train\.py$", README, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^pip install.*pytest$", README, flags=re.MULTILINE)) == 1
