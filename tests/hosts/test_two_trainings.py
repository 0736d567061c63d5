"""train.py in two processes learns what it learns in one, which goes on with their run."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from pairs import lines
from trainings import Trainings, ended

HERE = Path(__file__).parent
SAVED_OFTEN = "--steps", "4", "--checkpoint-every", "1"


@pytest.fixture(scope="module", name="trainings")
def _trainings(tmp_path_factory):
    made = Trainings(tmp_path_factory.mktemp("trainings"))
    yield made
    made.end()


@pytest.fixture(scope="module", autouse=True, name="one_killed")
def _one_killed(trainings):
    """Two processes of which 1 is killed while both save; 0 waits while other tests run."""
    flags = *SAVED_OFTEN, "--out", "one-killed"
    return trainings.pair(*flags, devices=1, script=HERE / "killed.py", KILLED="1")


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path):
    """A disk of 12 MB; None where this process may mount none."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield tmp_path if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


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


def goes_on_as_one(trainings, out, processes=2):
    """With --resume the run has the losses of the one process above."""
    flags = "--out", str(out), "--resume"
    start = trainings.pair if processes == 2 else lambda *args, **kw: [trainings.start(*args, **kw)]
    on = ended(*start(*flags, devices=1))
    assert [status for status, _, _ in on] == [0] * processes, on
    assert [row["step"] for row in trainings.metrics(out)] == [1, 2, 3, 4]
    assert losses(trainings, out) == pytest.approx(losses(trainings, "one"), abs=1e-5)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_two_that_are_killed_while_they_save_go_on_from_the_checkpoint_before(trainings):
    flags = *SAVED_OFTEN, "--out", "killed"
    killed = ended(*trainings.pair(*flags, devices=1, script=HERE / "killed.py", KILLED="0 1"))
    assert [status for status, _, _ in killed] == [137, 137], killed
    assert checkpoints(trainings.here / "killed") == [".3", "1", "2"]
    goes_on_as_one(trainings, "killed", 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_while_they_save_is_one_line_of_each(trainings, small_disk, processes):
    """What, where, how much is needed; with room again the run goes on."""
    out = (small_disk or trainings.here) / f"filled-{processes}"
    flags = *SAVED_OFTEN, "--out", str(out)
    options = {"devices": 1, "script": HERE / "filled.py"}
    options |= {"FILLED": str(small_disk)} if small_disk else {}
    both = (
        [trainings.start(*flags, **options)]
        if processes == 1
        else trainings.pair(*flags, **options)
    )
    for status, _, errors in ended(*both):
        assert status == 1
        said = [line for line in lines(errors) if not line.startswith("step ")]
        assert len(said) == 1, said
        (line,) = said
        assert f"{out}/checkpoints/3 could not be written: " in line
        reason = "No space left on device" if small_disk else "File too large"
        assert f"{reason}: it needs 1.07 MB. What was saved before is whole. Go on with: " in line
    assert checkpoints(out) == ["1", "2"]
    if small_disk:
        (small_disk / "filler").unlink()
    goes_on_as_one(trainings, out, 3 - processes)  # of another number


def test_a_signal_to_one_while_both_measure_ends_both_and_nothing_is_lost(trainings):
    """At once before there is anything to save; later behind the measurement, at the same step."""
    begun = "--steps", "4", "--eval-every", "2", "--out", "measured"
    goes_on = "Go on with: python train.py --out measured --resume"

    def signalled(*flags, at):
        its = {"devices": 1, "script": HERE / "measured.py", "SIGNALLED": str(at)}
        for status, _, errors in ended(*trainings.pair(*flags, **its)):
            [line] = (line for line in lines(errors) if not line.startswith("step "))
            yield status, line

    first, second = signalled(*begun, at=1)
    assert first == (1, "train.py: process 1 failed, so this one ended too: stopped by SIGTERM")
    assert second == (128 + signal.SIGTERM, f"train.py: stopped by SIGTERM. {goes_on}")
    first, second = signalled("--out", "measured", "--resume", at=2)
    number = len(trainings.metrics("measured"))
    assert number in (2, 3)  # it came after step 2
    line = f"train.py: stopped by SIGTERM after step {number}, which is saved. {goes_on}"
    assert first == second == (128 + signal.SIGTERM, line)
    assert checkpoints(trainings.here / "measured")[-1] == str(number)
    goes_on_as_one(trainings, "measured", 1)


def test_one_row_to_learn_from_is_enough_for_two_processes(trainings):
    lines = (trainings.here / "rows.jsonl").read_text().splitlines()[:2]  # one is held out
    (trainings.here / "few.jsonl").write_text("\n".join(lines))
    flags = "--data", "few.jsonl", "--out", "few", "--steps", "1"
    few = ended(*trainings.pair(*flags, devices=1))
    assert [status for status, _, _ in few] == [0, 0], few
    assert "1 rows" in few[0][1]
    assert trainings.metrics("few")[0]["loss"] > 0


def test_one_that_is_killed_while_both_save_ends_the_other_which_names_it(trainings, one_killed):
    """Within a minute, and the run goes on; the last here: its time is over then."""
    first, second = one_killed
    second.communicate()
    assert second.returncode == 137
    died = (trainings.here / "one-killed/died").stat().st_mtime
    _, errors = first.communicate(timeout=max(1, died + 60 - time.time()))
    assert first.returncode == 1
    [line] = (line for line in lines(errors) if not line.startswith("step "))
    assert line.startswith("train.py: process 1 ended or no longer answers, so this one ended too")
    assert line.endswith("Go on with: python train.py --out one-killed --resume")
    assert checkpoints(trainings.here / "one-killed") == ["1", "2"]
    goes_on_as_one(trainings, "one-killed")
