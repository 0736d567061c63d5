"""Rows that share sequences: every row once an epoch, by seed and step alone, whole and apart."""

import numpy as np
import pytest

from jlora.data import Batches, Example, Examples, PackedBatches

ROWS, SEQUENCES = 61, 3  # in a batch
LENGTH = 97


def examples(count=ROWS, shortest=5, longest=60, seed=1):
    """Rows whose tokens say which row and place they are."""
    rng = np.random.default_rng(seed)
    made = []
    for row, length in enumerate(rng.integers(shortest, longest, count).tolist()):
        tokens = [1000 * (row + 1) + place for place in range(length)]
        first = int(rng.integers(1, length - 2))
        left_out = first + 1 if first + 1 < length - 2 else None  # answers may have gaps
        made.append(Example(tokens, [at for at in range(first, length - 1) if at != left_out]))
    return made


def packed(seed=5, count=ROWS):
    return PackedBatches(examples(count), batch_size=SEQUENCES, length=LENGTH, seed=seed)


def read(batch):
    """The examples that the arrays of a batch hold, by row."""
    found = {}
    for tokens, segments, positions, labels, weights in zip(*batch.values(), strict=True):
        assert set(weights) <= {0, 1}
        for segment in range(1, segments.max() + 1):
            [its] = np.nonzero(segments == segment)
            assert (np.diff(its) == 1).all()
            learned = (weights > 0) & (segments[positions] == segment)
            answers = positions[learned]
            assert (segments[answers + 1] == segment).all()
            np.testing.assert_array_equal(tokens[answers + 1], labels[learned])
            row = int(tokens[its[0]]) // 1000 - 1
            assert row not in found
            found[row] = Example(tokens[its].tolist(), (answers - its[0]).tolist())
    return found


def test_packed_rows_stand_whole_in_their_segments_with_their_own_labels():
    batches = packed()
    assert list(batches(0)) == ["tokens", "segments", "positions", "labels", "weights"]
    found = {}
    for step in range(batches.per_epoch):
        found |= (its := read(batches(step)))
        assert sorted(its) == sorted(batches.rows(step))
        assert batches.tokens(step) == sum(len(example.tokens) for example in its.values())
    assert [found[row] for row in range(ROWS)] == examples()


def test_packed_batches_depend_on_the_seed_and_the_step_alone():
    """So that a run that goes on anywhere, between epochs too, sees what one undisturbed does."""
    one, other = packed(), packed()
    steps = 3 * one.per_epoch
    wanted = [one(step) for step in range(steps)]
    for step in reversed(range(steps)):
        for name, array in other(step).items():
            np.testing.assert_array_equal(array, wanted[step][name])
    assert any(one.rows(step) != packed(seed=6).rows(step) for step in range(5))
    PackedBatches(examples(), batch_size=1, length=LENGTH, seed=-1)(0)  # any whole number will do


def test_each_epoch_of_packed_batches_visits_every_row_once_in_an_order_of_its_own():
    batches = packed()
    epochs = [
        [row for step in range(batches.per_epoch) for row in batches.rows(epoch + step)]
        for epoch in (0, batches.per_epoch, 7 * batches.per_epoch)
    ]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_what_an_epoch_can_not_fill_has_no_weight():
    batches = packed(count=2)
    assert batches.per_epoch == 1
    assert len(read(batches(11))) == 2
    empty = batches(0)["segments"].max(axis=1) == 0
    assert empty.any()
    assert not batches(0)["weights"][empty].any()


def long_tailed(count, seed=0):
    lengths = np.exp(np.random.default_rng(seed).normal(np.log(150), 1.0, count))
    places = range(2000)
    return Examples.of(
        Example([*places[:length]], [*places[length // 2 : length - 1]])
        for length in lengths.clip(20, 2000).astype(int).tolist()
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_of_rows_with_a_long_tail_nineteen_of_twenty_positions_are_real_in_one_shape(batch_size):
    rows = long_tailed(600)
    batches = PackedBatches(rows, batch_size=batch_size, length=2048)
    steps = range(batches.per_epoch)
    assert {batches(step)["tokens"].shape for step in steps} == {(batch_size, 2048)}
    [(_, answers)] = batches.shapes
    assert {batches(step)["labels"].shape for step in steps} == {(batch_size, answers)}
    real = sum(map(batches.tokens, steps)) / (batches.per_epoch * batch_size * 2048)
    assert real > 0.95
    unpacked = Batches(rows, batch_size=batch_size)
    padded = sum(unpacked(step)["tokens"].size for step in range(unpacked.per_epoch))
    assert sum(map(unpacked.tokens, range(unpacked.per_epoch))) / padded < 0.75


def test_grain_packs_and_orders_as_it_did_when_runs_were_begun():
    """A run that goes on under another release of it reads the rows that it would have read."""
    batches = PackedBatches(examples(9), batch_size=1, length=120, seed=3)
    first, second = [[6, 1], [2, 5, 3], [4, 7, 0, 8]], [[2, 5, 3], [4, 7, 0, 8], [6, 1]]
    assert [batches.rows(step) for step in range(2 * batches.per_epoch)] == [*first, *second]


def test_what_can_not_be_packed_is_refused_all_at_once():
    rows = [Example([1, 2, 3], []), Example([1] * 9, [1]), Example([1] * 5, [1])]
    with pytest.raises(ValueError, match=r"1 of 3 examples .* 5 tokens: 1 \(9 tokens\); 1 of 3 ex"):
        PackedBatches(rows, batch_size=1, length=5)
    with pytest.raises(ValueError, match="no examples"):
        PackedBatches([], batch_size=1, length=5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        PackedBatches(rows[2:], batch_size=0, length=5)
