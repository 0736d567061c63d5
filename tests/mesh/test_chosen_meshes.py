"""Which devices a run takes when nothing says so, and the line that tells it."""

import dataclasses
import math
import re

import pytest
from tiny import save_tiny_llama

from jlora import finetune, trainer
from jlora._sizes import sizes
from jlora.finetune import Settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "data", "line"),
    [
        (4, 1, 4, "data=4: 4 of 8 devices, 4 idle"),
        (6, 1, 6, "data=6: 6 of 8 devices, 2 idle"),
        (7, 1, 7, "data=7: 7 of 8 devices, 1 idle"),
        (8, 1, 8, "data=8: 8 of 8 devices"),
        (12, 1, 6, "data=6: 6 of 8 devices, 2 idle"),
        (12, 3, 4, "data=4: 4 of 8 devices, 4 idle"),
    ],
)
def test_as_many_devices_as_divide_the_rows(tiny, capsys, batch_size, accumulate, data, line):
    settings = Settings(model=tiny, batch_size=batch_size, accumulate=accumulate)
    found = finetune.layout(settings)
    assert dict(found.mesh.shape) == {"data": data}
    assert capsys.readouterr().out.split() == ["mesh", *line.split()]


@pytest.mark.parametrize("batch_size", [1, 11])
def test_rows_that_nothing_divides_stay_on_one_device(tiny, capsys, batch_size):
    assert finetune.layout(Settings(model=tiny, batch_size=batch_size)) is None
    assert capsys.readouterr().out.endswith("one device: 1 of 8 devices, 7 idle\n")


@pytest.fixture
def rows(tmp_path):
    """A file of a few rows."""
    path = tmp_path / "rows.jsonl"
    lines = (f'{{"prompt": "{n}+1", "completion": "{n + 1}"}}' for n in range(24))
    path.write_text("\n".join(lines))
    return str(path)


def test_weights_that_do_not_fit_are_cut(tiny, rows, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "memory_limit", lambda: 8 * 2**10)
    found = finetune.layout(Settings(model=tiny, data=(rows,), batch_size=8, max_length=128))
    assert dict(found.mesh.shape) == {"fsdp": 8}
    assert "fsdp=8: 8 of 8 devices" in capsys.readouterr().out


UNDIVIDED = [
    (6, 1, {"data": 2, "fsdp": 2, "model": 2}, "6 rows can't be cut over data=2,fsdp=2:"),
    (6, 1, {"data": 8}, "6 rows can't be cut over data=8:"),
    (5, 1, {"fsdp": 4}, "5 rows can't be cut over fsdp=4:"),
    (12, 4, {"data": 2}, "3 rows (--batch-size over --accumulate 4) can't be cut over data=2:"),
]


@pytest.mark.parametrize(("batch_size", "accumulate", "mesh", "told"), UNDIVIDED)
def test_rows_that_a_mesh_does_not_divide_are_told_with_its_axes_and_with_choices_that_work(
    tiny, batch_size, accumulate, mesh, told
):
    """Each --batch-size of the message on this mesh, and its --mesh with these rows."""
    settings = Settings(model=tiny, batch_size=batch_size, accumulate=accumulate, mesh=mesh)
    with pytest.raises(ValueError, match=r"expected --batch-size \d+.*, or --mesh") as raised:
        finetune.layout(settings)
    message = str(raised.value)
    assert message.startswith(told)
    before, asked = message.split(", or --mesh ")
    for size in re.findall(r"\d+", before.partition("expected --batch-size")[2]):
        found = finetune.layout(dataclasses.replace(settings, batch_size=int(size)))
        assert dict(found.mesh.shape) == mesh
    again = finetune.layout(dataclasses.replace(settings, mesh=sizes(asked)))
    assert again.mesh.size == math.prod(mesh.values())
