import os
import signal

import pytest

from jlora import monitor


def test_a_resumed_run_has_one_line_for_each_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with monitor.Metrics(path) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1 / step})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in monitor.read_metrics(path)] == [1, 2, 3]
    with monitor.Metrics(path, resume_at=2) as metrics:
        metrics.write(3, {"loss": 0.3})
    assert monitor.read_metrics(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.3},
    ]
    with monitor.Metrics(path):
        pass
    assert monitor.read_metrics(path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_acts(number):
    former = signal.getsignal(number)
    with monitor.stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        assert signal.getsignal(number) == former


def test_the_figure_is_a_png(tmp_path):
    metrics = [{"step": step, "loss": 3 / step} for step in (1, 2, 3)]
    scores = {
        "before": {"loss": 3.0, "exact_match": 0.0},
        "after": {"loss": 0.5, "exact_match": 0.9},
    }
    monitor.draw(tmp_path / "training.png", metrics, scores)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
