import os
import signal

import pytest

from jlora import trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_acts(number):
    former = signal.getsignal(number)
    with trainer.stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        assert signal.getsignal(number) == former
