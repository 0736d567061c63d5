"""train.py in two processes learns what it learns in one, which goes on with their run."""

from pathlib import Path

import pytest
from trainings import Trainings, ended

HERE = Path(__file__).parent


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


def test_two_that_are_killed_while_they_save_go_on_from_the_checkpoint_before(trainings):
    """With the losses of the one process above."""
    flags = "--steps", "4", "--out", "killed", "--checkpoint-every", "1"
    killed = ended(*trainings.pair(*flags, devices=1, script=HERE / "killed.py"))
    assert [status for status, _, _ in killed] == [137, 137], killed
    there = sorted(path.name for path in (trainings.here / "killed" / "checkpoints").iterdir())
    assert there == [".3", "1", "2"]
    on = ended(*trainings.pair("--out", "killed", "--resume", devices=1))
    assert [status for status, _, _ in on] == [0, 0], on
    assert [row["step"] for row in trainings.metrics("killed")] == [1, 2, 3, 4]
    assert losses(trainings, "killed") == pytest.approx(losses(trainings, "one"), abs=1e-5)


def test_one_row_to_learn_from_is_enough_for_two_processes(trainings):
    lines = (trainings.here / "rows.jsonl").read_text().splitlines()[:2]  # one is held out
    (trainings.here / "few.jsonl").write_text("\n".join(lines))
    flags = "--data", "few.jsonl", "--out", "few", "--steps", "1"
    few = ended(*trainings.pair(*flags, devices=1))
    assert [status for status, _, _ in few] == [0, 0], few
    assert "1 rows" in few[0][1]
    assert trainings.metrics("few")[0]["loss"] > 0
