"""train.py in two processes of four devices each, on loopback, and in one of eight."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny import save_tiny_llama  # pyright: ignore[reportMissingImports]

TRAIN = Path(__file__).parents[2] / "train.py"
LIMIT = 150  # seconds


class Trainings:
    """A folder with a model and rows, and the runs that were started in it."""

    def __init__(self, here):
        self.here = here
        self.started = []
        save_tiny_llama(here / "tiny")
        self.rows("rows.jsonl", 40)

    def rows(self, name, count):
        """Writes a file of rows."""
        rows = [{"prompt": f"{n}?", "completion": "odd" if n % 2 else "even"} for n in range(count)]
        (self.here / name).write_text("\n".join(map(json.dumps, rows)))

    def start(self, *flags, devices=4, **environment):
        """One train.py."""
        common = [
            "--model",
            "tiny",
            "--rank",
            "3",
            "--max-length",
            "96",
            "--max-new-tokens",
            "4",
            "--batch-size",
            "8",
        ]
        if "--resume" in flags:
            common = []
        elif "--data" not in flags:
            common += ["--data", "rows.jsonl"]
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *common, *flags],
            cwd=self.here,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": str(TRAIN.parent),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def pair(self, *flags, of_each=((), ())):
        """Two train.py that are one run."""
        at = f"localhost:{free_port()}"
        return [
            self.start(
                *flags,
                *of_each[number],
                *f"--coordinator {at} --processes 2 --process-id {number}".split(),
                PYTHONHASHSEED=str(number + 1),
            )
            for number in (0, 1)
        ]

    def metrics(self, out):
        """The rows of metrics that a run has written so far."""
        path = self.here / out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def until(self, out, step):
        """Waits until a run has made this step."""
        end = time.monotonic() + LIMIT
        while not any(row["step"] >= step for row in self.metrics(out)):
            assert time.monotonic() < end, "the run came nowhere"
            time.sleep(0.1)

    def end(self):
        """Ends those that still run."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def ended(*processes):
    """(status, stdout, stderr) of each."""
    told = [process.communicate(timeout=LIMIT) for process in processes]
    return [(each.returncode, *said) for each, said in zip(processes, told, strict=True)]


def child_of(process):
    """The process that a parent runs."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found[0])


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
