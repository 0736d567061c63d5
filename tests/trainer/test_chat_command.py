"""The chat, its lines piped: history, commands, interruption, and the end of the positions."""

import io
import os
import signal
import subprocess
import sys

import pytest

from jlora import models
from jlora.__main__ import main


class Stdout(io.StringIO):
    """Keeps what is printed; at the piece numbered ``interrupted``, as if Ctrl-C were pressed."""

    def __init__(self, interrupted=0):
        super().__init__()
        self.left = interrupted

    def write(self, text):
        written = super().write(text)
        self.left -= bool(text)
        if text and self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return written


@pytest.fixture
def _interruptible():
    """Python's own handler: a process that a shell started in the background ignores Ctrl-C."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def model(tiny):
    return models.load(tiny)


@pytest.fixture
def chat(tiny, monkeypatch, capsys):
    """What stdout and stderr say after a chat of these lines."""

    def run(*lines, flags=(), interrupted=0):
        out = Stdout(interrupted)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys, "stdout", out)
        status = main(["chat", "--model", str(tiny), "--max-new-tokens", "9", *flags])
        assert status == 0
        return out.getvalue(), capsys.readouterr().err

    return run


def conversation(model, *questions, system=None, **options):
    """The answers to the questions, each asked after those before it."""
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        [answer] = models.answer(model, [messages], max_new_tokens=9, **options)
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer})
    return answers


def printed(answers):
    return "".join(f"{answer}\n" for answer in answers)


def test_each_line_is_answered_after_those_before_it(model, chat):
    answers = conversation(model, "one", "two", "three")
    assert chat("one", "", "two", "  ", "three") == (printed(answers), "")
    assert answers[1:] != conversation(model, "two", "three")


def test_reset_and_system_begin_anew_and_quit_ends(model, chat):
    out, err = chat(
        "one", "/reset", "two", "/rest", "/reset", "/system Count.", "one", "/quit", "x"
    )
    alone = [*conversation(model, "one"), *conversation(model, "two")]
    counted = conversation(model, "one", system="Count.")
    assert out == printed([*alone, *counted])
    assert counted[0] != alone[0]
    assert err.startswith("/rest is no command: /reset begins anew")
    assert chat("one", flags=["--system", "Count."])[0] == printed(counted)
    assert chat("/system", "one", flags=["--system", "Count."])[0] == printed(alone[:1])


def test_flags_choose_the_tokens(model, chat):
    sampling = models.Sampling(0.9, 30, 0.9, 0.01, 1.2)
    answers = conversation(model, "one", "two", sampling=sampling, seed=7, stop=["e"])
    flags = "--temperature .9 --top-k 30 --top-p .9 --min-p .01 --repetition-penalty 1.2 --seed 7"
    assert chat("one", "two", flags=[*flags.split(), "--stop", "e"])[0] == printed(answers)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_answer_stands_as_far_as_it_came_and_the_chat_goes_on(model, chat):
    pieces = list(models.stream(model, [{"role": "user", "content": "one"}], max_new_tokens=9))
    out, _ = chat("one", "two", interrupted=3)
    assert len(pieces) > 3
    first = "".join(pieces[:3])
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert out == printed([first, *models.answer(model, [messages], max_new_tokens=9)])


def test_a_conversation_beyond_the_positions_is_told_in_one_line(model, chat):
    out, err = chat("x" * 150, "y" * 90, "/reset", "one")
    assert out == printed([*conversation(model, "x" * 150), *conversation(model, "one")])
    assert err.count("\n") == 1
    assert "longer than the 256 positions of" in err
    assert err.endswith("; /reset begins anew\n")


def test_a_flag_out_of_range_is_one_message_before_the_model_is_loaded():
    command = [sys.executable, "-m", "jlora", "chat", "--model", "/nowhere/m", "--top-p", "2"]
    done = subprocess.run(command, input="one\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "jlora chat: sampling: top_p is 2.0: expected above 0 and at most 1 (1 is all tokens)\n"
    )


def test_generate_streams_the_answer_that_it_would_print(tiny, capsys):
    said = []
    for flag in ("--stream", "--no-stream"):
        command = ["generate", "--model", str(tiny), "--prompt", "12?", "--max-new-tokens", "9"]
        assert main([*command, "--temperature", "0.8", flag]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != "\n"
