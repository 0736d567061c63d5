"""llama.cpp out of npm's node-llama-cpp, asked for answers and probabilities by a process."""

import json
import subprocess
import tempfile
from pathlib import Path

_SCRIPT = Path(__file__).with_name("answers.mjs")
_LONGEST = 240  # seconds; a job takes one


def asked(*jobs):
    """What llama.cpp answers to each of the jobs, which answers.mjs describes."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps([{**job, "model": str(job["model"])} for job in jobs]))
        command = ["node", _SCRIPT, request, answer]
        run = subprocess.run(command, timeout=_LONGEST, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"llama.cpp ended by {run.returncode}: {run.stderr[-500:]}")
        return json.loads(answer.read_text())
