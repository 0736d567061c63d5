import random

import numpy as np
import pytest

from jlora.data import Batches, Example, Labelled, LabelledBatches, PackedBatches


def examples(count=53, longest=90):
    rng = random.Random(1)
    made = []
    for row in range(count):
        length = 5 + int(rng.random() * (longest - 5))
        first = 1 + int(rng.random() * (length - 3))
        tokens = [1000 * (row + 1) + place for place in range(length)]
        made.append(Example(tokens, list(range(first, length - 1))))
    return made


def rows_of(batch):
    real = batch["weights"].any(axis=1)
    return [int(tokens[0]) // 1000 - 1 for tokens in batch["tokens"][real]]


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    one, other = (Batches(examples(), batch_size=4, seed=5) for _ in range(2))
    last_first = [other(step) for step in reversed(range(40))][::-1]
    for step in range(40):
        for name, array in one(step).items():
            np.testing.assert_array_equal(array, last_first[step][name])
    third = Batches(examples(), batch_size=4, seed=6)
    assert any(rows_of(one(step)) != rows_of(third(step)) for step in range(5))


def test_each_epoch_visits_every_row_once_in_an_order_of_its_own():
    batches = Batches(examples(), batch_size=4)
    epochs = [
        [row for step in range(batches.per_epoch) for row in rows_of(batches(first + step))]
        for first in (0, batches.per_epoch)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(53))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("longest", [9, 23, 90, 301, 530])
def test_no_batch_is_longer_than_the_rows_may_be(longest):
    """A model that learned as many positions takes no token more, padding or not."""
    texts = [Labelled([1] * n, [0] * n, 0) for n in range(1, longest + 1)]
    answers = [Example([1] * n, [n - 2]) for n in range(2, longest + 1)]
    for kind, rows in ((LabelledBatches, texts), (Batches, answers)):
        batches = kind(rows, batch_size=4, max_length=longest)
        found = [batches(step)["tokens"] for step in range(batches.per_epoch)]
        assert max(tokens.shape[1] for tokens in found) == longest
        assert sum(tokens.sum() for tokens in found) == sum(len(row.tokens) for row in rows)
        with pytest.raises(ValueError, match=f"a row has {longest} tokens: expected at most"):
            kind(rows, batch_size=4, max_length=longest - 1)


def of_processes(batches, count, step):
    """The step's batch as so many processes make it, each the rows of its own place."""
    size = batches.batch_size // count
    parts = [batches.part(step, at * size, (at + 1) * size) for at in range(count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("kind", [Batches, PackedBatches, LabelledBatches])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2)])
def test_an_epoch_that_goes_on_in_another_number_of_processes_has_each_row_once(
    kind, before, after
):
    rows = examples()
    if kind is LabelledBatches:
        rows = [Labelled(row.tokens, [0] * len(row.tokens), 0) for row in rows]
    batches = kind(rows, batch_size=4, **{"length": 90} if kind is PackedBatches else {})
    seen = []
    for step in range(batches.per_epoch):
        batch = of_processes(batches, before if step < batches.per_epoch // 2 else after, step)
        whole = batches(step)
        assert batch.keys() == whole.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(array, whole[name])
        first = (batch["tokens"] > 0) & (batch["tokens"] % 1000 == 0)  # of a row
        seen += (batch["tokens"][first] // 1000 - 1).tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_tokens_are_counted_without_padding():
    batches = Batches(examples(), batch_size=4)
    counted = sum(batches.tokens(step) for step in range(batches.per_epoch))
    assert counted == sum(len(example.tokens) for example in examples())


def test_labels_are_the_tokens_after_the_positions():
    batches = Batches(examples(), batch_size=4)
    learned = {}
    for step in range(batches.per_epoch):
        batch = batches(step)
        for tokens, positions, labels, weights in zip(*batch.values(), strict=True):
            real = weights > 0
            np.testing.assert_array_equal(tokens[positions[real] + 1], labels[real])
            if real.any():
                learned[int(tokens[0]) // 1000 - 1] = positions[real].tolist()
    assert learned == {row: example.answers for row, example in enumerate(examples())}


def test_padding_is_known_by_its_place_so_that_its_token_may_be_learned():
    """Token 0 fills the rows up, and is a label like any other where a row has it."""
    made = [Example([7, 8, 0, 9, 0], [1, 2, 3]), Example([7, 0, 0, 5, 6, 0, 0], [3, 4, 5])]
    batch = Batches(made, batch_size=3, shapes=1, shuffle=False)(0)
    assert batch["tokens"].shape[0] == 3
    learned = [
        labels[weights > 0]
        for labels, weights in zip(batch["labels"], batch["weights"], strict=True)
    ]
    assert [each.tolist() for each in learned] == [[0, 9, 0], [6, 0, 0], []]


def test_shapes_are_few_and_pad_less_than_one_would():
    few, one = (Batches(examples(200), batch_size=4, shapes=shapes) for shapes in (3, 1))
    shapes = {few(step)["tokens"].shape for step in range(few.per_epoch)}
    assert shapes == {(4, length) for length, _ in few.shapes}
    assert len(few.shapes) == 3
    padded = [sum(b(step)["tokens"].size for step in range(b.per_epoch)) for b in (few, one)]
    assert padded[0] < 0.8 * padded[1]


def test_fewer_rows_than_a_batch_leave_places_of_no_weight():
    batches = Batches(examples(3), batch_size=8, shapes=1)
    assert batches.per_epoch == 1
    assert sorted(rows_of(batches(4))) == [0, 1, 2]


def test_unshuffled_batches_keep_the_order():
    batches = Batches(examples(9), batch_size=4, shapes=1, shuffle=False)
    assert [rows_of(batches(step)) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_nothing_to_batch_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        Batches([], batch_size=4)
    with pytest.raises(ValueError, match="batch_size 0"):
        Batches(examples(), batch_size=0)
