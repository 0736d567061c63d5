"""A terminal gets a bar, a file a plain line now and then, and lines stand above the bar."""

import fcntl
import io
import os
import pty
import struct
import termios
import types

import jax
import pytest

from jlora import trainer
from jlora.trainer import _progress


class Clock:
    """Time that the test moves."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def test_a_file_gets_a_line_every_thirty_seconds_without_control_characters(clock):
    file = io.StringIO()
    with trainer.progress(400, file=file) as bar:
        for number in range(1, 401):
            clock.now += 2.0 if number > 1 else 60.0  # the first step compiles
            bar.show(number, {"loss": 4 / number, "tokens/s": 1234.56})
            if number == 200:
                bar.say("step 200: saved")
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 1 of 400, loss 4, tokens/s 1235"
    assert lines[1] == "step 16 of 400, loss 0.25, tokens/s 1235, 12:48 left"
    assert lines[-1] == "step 400 of 400, loss 0.01, tokens/s 1235, 0:00 left"
    assert "step 200: saved" in lines
    assert len(lines) == 1 + 1 + 399 // 15 + 1
    assert all(line.isprintable() for line in lines)


def test_a_resumed_run_reckons_with_its_own_steps(clock):
    file = io.StringIO()
    with trainer.progress(4000, start=100, every=0, file=file) as bar:
        for number in (101, 102):
            bar.show(number, {})
            clock.now += 2.0
    assert file.getvalue().splitlines()[-1] == "step 102 of 4000, 2:09:56 left"


def test_as_a_callback_it_waits_for_the_device_only_when_it_shows(clock):
    file, read = io.StringIO(), []

    class Loss:
        def __float__(self):
            read.append(clock.now)
            return 0.5

    with trainer.progress(40, file=file) as bar:
        for number in range(1, 41):
            clock.now += 5
            bar(trainer.Update(number, None, {"loss": Loss()}, last=number == 40))
    assert read == [5, *range(35, 200, 30), 200]
    assert file.getvalue().startswith("step 1 of 40, loss 0.5\nstep 7 of 40, loss 0.5,")


def shown_in_a_terminal(use, columns=100):
    """What a terminal is sent."""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with os.fdopen(end, "w") as terminal:
        use(terminal)
        terminal.flush()
        sent = os.read(screen, 100_000).decode()
    os.close(screen)
    return sent


def test_a_terminal_gets_a_bar_and_lines_above_it(clock):
    def use(terminal):
        with trainer.progress(8, start=3, file=terminal) as bar:
            for number in range(4, 9):
                clock.now += 1.0
                bar.show(number, {"loss": 0.25, "tokens/s": 110.0})
                if number == 6:
                    bar.say("a line of its own")

    sent = shown_in_a_terminal(use)
    states = sent.split("\r")
    assert "3/8" in states[1]  # where it goes on
    assert "loss=0.25, tokens/s=110" in sent
    assert "8/8" in states[-2] + states[-1]
    line = next(at for at, state in enumerate(states) if "a line of its own" in state)
    assert states[line] == "a line of its own"
    assert not states[line - 1].strip(" \x1b[K")  # the bar was wiped off before
    assert "6/8" in "".join(states[line + 1 :])  # and drawn anew below


def test_a_terminal_without_a_size_gets_lines(clock):
    def use(terminal):
        with trainer.progress(8, file=terminal) as bar:
            bar.show(8, {"loss": 0.25})

    assert shown_in_a_terminal(use, columns=0) == "step 8 of 8, loss 0.25\r\n"


def test_a_notebook_gets_a_bar_though_it_is_no_terminal(monkeypatch, clock):
    bars = []

    class Bar:
        n = 0

        def __init__(self, **looks):
            bars.append(looks["total"])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setitem(_progress.sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(_progress.sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    with trainer.progress(5):
        pass
    with trainer.progress(6, file=io.StringIO()):  # a log file is one there too
        pass
    assert bars == [5]


def test_the_first_process_alone_shows_anything(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    with trainer.progress(3) as bar:
        bar.show(3, {"loss": 1.0})
        bar.say("saved")
    assert capsys.readouterr() == ("", "")
