"""Two processes on loopback, each with four devices of the CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# What gloo's threads print at once, each piece by piece.
_OF_GLOO = re.compile(
    r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number of connected peer ranks "
    r"is : )*"
)


def lines(said):
    """What a process said, but for gloo."""
    return [line for line in said.splitlines() if not _OF_GLOO.fullmatch(line)]


def devices(count):
    """The flags of XLA for so many devices of the CPU, beside those that are set."""
    wanted = f"--xla_force_host_platform_device_count={count}"
    return f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()


class Pair:
    """Two processes that run a function of `programs`."""

    def __init__(self, name, folder, *args):
        port = free_port()
        self.both = []
        for number in range(2):
            environment = os.environ | {
                "XLA_FLAGS": devices(4),
                "JAX_PLATFORMS": "cpu",
                "PYTHONHASHSEED": str(number + 1),
                "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
            }
            command = [sys.executable, HERE / "programs.py", name, str(port), str(number), folder]
            self.both.append(
                subprocess.Popen(
                    [*map(str, command), *map(str, args)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def told(self, timeout=90):
        """What each printed, line by line, once both have ended."""
        said = [each.communicate(timeout=timeout) for each in self.both]
        self.errors = "\n".join(errors for _, errors in said)
        return [lines(printed) for printed, _ in said]

    def status(self):
        return [each.returncode for each in self.both]

    def end(self):
        for each in self.both:
            if each.poll() is None:
                each.send_signal(signal.SIGCONT)
                each.kill()
            if not each.stdout.closed:
                each.communicate()


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
