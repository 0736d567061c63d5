"""Sources in a mix have their shares at every row, and no row comes twice before all came once."""

import collections
import json

import numpy as np
import pytest

from jlora import data


def sources_of(*sizes):
    return [[f"{name}{number}" for number in range(size)] for name, size in
            zip("abcdefg", sizes, strict=False)]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ((7, 3), (1, 1)),
        ((5, 11, 3), (3, 1, 0.5)),
        ((2, 2, 2, 2, 2), (0.55, 0.15, 0.1, 0.1, 0.1)),
        ((4, 4, 4), (1 / 3, 1 / 3, 1 / 3)),
        ((9,), (2,)),
    ],
)
def test_after_any_number_of_rows_shares_are_within_one_row(sizes, weights):
    rows = data.mixed(list(zip(sources_of(*sizes), weights, strict=True)), seed=3, length=97)
    names = np.array([row[0] for row in rows])
    for name, weight in zip("abcdefg", weights, strict=False):
        had = np.cumsum(names == name)
        assert np.abs(had - np.arange(1, 98) * weight / sum(weights)).max() < 1


def test_a_source_gives_every_row_before_one_again():
    first, second = sources_of(5, 13)
    rows = list(data.mixed([(first, 2), (second, 1)], seed=1, length=60))
    given = [row for row in rows if row in first]
    for at in range(0, len(given) - 4, 5):
        assert sorted(given[at : at + 5]) == first
    assert given[:5] != given[5:10]
    counts = collections.Counter(row for row in rows if row in second)
    assert set(counts) == set(second)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_order_is_the_seeds_and_another_length_changes_nothing_before():
    pairs = list(zip(sources_of(5, 13), (2, 1), strict=True))
    rows = data.mixed(pairs, seed=1)
    assert len(rows) == 18
    assert list(rows) == list(data.mixed(pairs, seed=1, length=40))[:18]
    assert list(rows) != list(data.mixed(pairs, seed=2))
    assert [rows[at] for at in range(18)] == list(rows)
    assert list(rows[3:9:2]) == list(rows)[3:9:2]
    assert rows[-1] == list(rows)[-1]
    with pytest.raises(IndexError):
        rows[18]


def test_rows_on_disk_are_mixed_and_held_out_where_they_are(tmp_path):
    parts = []
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"{name}{n}", "completion": "yes"} for n in range(6)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        parts.append(data.open_rows(path, folder=tmp_path / "kept"))
    rows = data.mixed([(parts[0], 1), (parts[1], 1)], seed=0, length=20)
    train, held_out = data.hold_out(rows, 3, seed=0)
    assert isinstance(train, data.Mixed)
    asked = {row[0]["content"] for row in held_out}
    assert not asked & {row[0]["content"] for row in train}
    assert len(data.digest(train, held_out)) == 64


def test_what_can_t_be_mixed_is_named_at_once():
    with pytest.raises(ValueError, match="source 1: has no rows; source 2: the weight is -1: exp"):
        data.mixed([([], 1), (["a"], -1)], seed=0)
    with pytest.raises(ValueError, match="no source"):
        data.mixed([], seed=0)
    with pytest.raises(ValueError, match="length is 0"):
        data.mixed([(["a"], 1)], seed=0, length=0)
