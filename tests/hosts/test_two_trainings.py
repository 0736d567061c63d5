"""train.py in two processes learns what it learns in one, which goes on with their run."""

import pytest
from trainings import Trainings, ended


@pytest.fixture(scope="module", name="trainings")
def _trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("trainings"))
    yield made
    made.end()


def losses(trainings, out):
    return {row["step"]: row["loss"] for row in trainings.metrics(out)}


def test_two_processes_learn_what_one_learns_and_only_the_first_speaks(trainings):
    flags = "--steps", "4", "--mesh", "data=2,model=4"
    two = ended(*trainings.pair(*flags, "--out", "two"))
    assert [status for status, _, _ in two] == [0, 0], two
    assert "two/adapter" in two[0][1]
    (one,) = ended(trainings.start("--steps", "4", "--out", "one", devices=1))
    assert one[0] == 0, one
    assert losses(trainings, "two") == pytest.approx(losses(trainings, "one"), abs=1e-5)
    assert len(losses(trainings, "two")) == 4


def test_one_process_goes_on_with_the_run_of_two(trainings):
    """That of the test above."""
    flags = "--out", "two", "--resume", "--steps", "6", "--mesh", "data=1"
    (on,) = ended(trainings.start(*flags, devices=1))
    assert on[0] == 0, on
    assert [row["step"] for row in trainings.metrics("two")] == list(range(1, 7))
