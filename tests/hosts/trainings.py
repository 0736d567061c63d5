"""train.py in two processes of four devices each, on loopback, and in one of eight."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pairs
from tiny import save_tiny_llama  # pyright: ignore[reportMissingImports]

TRAIN = Path(__file__).parents[2] / "train.py"
LIMIT = 400  # seconds, after which a run hangs: a busy machine is slow
COMMON = ["--model=tiny", "--data=rows.jsonl", "--rank=3", "--max-length=96"]
COMMON += ["--max-new-tokens=4", "--batch-size=8"]


class Trainings:
    """A folder with a model and rows, and the runs that were started in it."""

    def __init__(self, here):
        self.here = here
        self.started = []
        save_tiny_llama(here / "tiny")
        rows = [{"prompt": f"{n}?", "completion": "odd" if n % 2 else "even"} for n in range(40)]
        (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def start(self, *flags, devices=4, script=TRAIN, here=None, most=None, **environment):
        """One train.py, perhaps elsewhere, that writes files of so many bytes at most."""
        common = [] if "--resume" in flags else COMMON
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
        process = subprocess.Popen(
            [sys.executable, str(script), *common, *flags],
            cwd=here or self.here,
            preexec_fn=None if most is None else limit,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": pairs.devices(devices),
                "PYTHONPATH": str(TRAIN.parent),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def pair(self, *flags, second=None, **options):
        """Two train.py that are one run; the second one with options of its own."""
        at = f"localhost:{pairs.free_port()}"
        return [
            self.start(
                *flags,
                *f"--coordinator {at} --processes 2 --process-id {number}".split(),
                PYTHONHASHSEED=str(number + 1),
                **options,
                **((number and second) or {}),
            )
            for number in (0, 1)
        ]

    def metrics(self, out):
        """The rows of metrics that a run has written so far."""
        path = self.here / out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def end(self):
        """Ends those that still run, and closes what none has read."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            if not process.stdout.closed:
                process.communicate()


def ended(*processes):
    """(status, stdout, stderr) of each."""
    told = [process.communicate(timeout=LIMIT) for process in processes]
    return [(each.returncode, *said) for each, said in zip(processes, told, strict=True)]
