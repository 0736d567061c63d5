"""Two processes on loopback, each with four devices of the CPU."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Pair:
    """Two processes that run a function of `programs`."""

    def __init__(self, name, folder, *args):
        port = free_port()
        self.both = []
        for number in range(2):
            environment = os.environ | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
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
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def told(self, timeout=90):
        """What each printed, line by line, once both have ended."""
        texts = [each.communicate(timeout=timeout)[0] for each in self.both]
        return [[line for line in text.splitlines() if "[Gloo]" not in line] for text in texts]

    def status(self):
        return [each.returncode for each in self.both]

    def end(self):
        for each in self.both:
            if each.poll() is None:
                each.send_signal(signal.SIGCONT)
                each.kill()
            each.communicate()


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
