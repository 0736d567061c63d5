"""Each example runs as it stands and prints what its first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from promised import problems, same_line

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(path, tmp_path):
    ran = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    promised = path.read_text().split("It prints\n", 1)[1].split('"""', 1)[0]
    assert not problems(ran.stdout, promised), ran.stdout
    assert not list(tmp_path.iterdir()), "it left files behind"


@pytest.mark.parametrize(
    ("got", "promised"),
    [
        ("loss 0.81", "loss 0.29"),
        ("71 % right", "94 % right"),
        ("1,024 of 5,000 parameters", "1,025 of 5,000 parameters"),
        ("the same: False", "the same: True"),
        ("differ by 1e-02", "differ by 1e-06"),
        ("loss 0.31 and more", "loss 0.29"),
    ],
)
def test_what_was_not_promised_is_seen(got, promised):
    assert not same_line(got, promised)
    assert same_line(promised.replace("0.29", "0.31").replace("94 %", "91 %"), promised)
    assert problems(f"first\n{got}", f"first\n{promised}")
    assert problems("first\nsecond", "first") == ["not promised: 'second'"]
