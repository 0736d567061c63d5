"""What HF_TOKEN and HF_HUB_OFFLINE say holds: huggingface_hub itself reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Stands for the hub: answers nothing but remembers what each request carried.
ASK = """
import json, sys, huggingface_hub
from huggingface_hub import constants, utils
from jlora import _hub
said = []
def snapshot_download(name, *, revision=None, allow_patterns=None, **other):
    said.append({"offline": constants.HF_HUB_OFFLINE, "name": name, "other": sorted(other),
                 "token": utils.build_hf_headers().get("authorization")})
    if constants.HF_HUB_OFFLINE:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline mode is enabled")
    return sys.argv[1]
def get_safetensors_metadata(name, *, revision=None, **other):
    said.append({"name": name, "other": sorted(other)})
    raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")
huggingface_hub.snapshot_download = snapshot_download
huggingface_hub.get_safetensors_metadata = get_safetensors_metadata
for ask in (lambda: _hub.snapshot("owner/name", ["*.json"]), lambda: _hub.headers("owner/name")):
    try:
        said.append(str(ask()))
    except _hub.UnreachableError as error:
        said.append(f"unreachable: {error}")
print(json.dumps(said))
"""


def asked(folder, **environment):
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_HOME": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder)],
        env=clean, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_a_token_and_offline_mode_hold_and_nothing_overrides_them(tmp_path):
    first, answer, second, headers = asked(tmp_path, HF_TOKEN="hf_one", HF_HUB_OFFLINE="1")
    wanted = {"offline": True, "name": "owner/name", "other": [], "token": "Bearer hf_one"}
    assert first == wanted
    assert second == {"name": "owner/name", "other": []}
    assert answer.startswith("unreachable: LocalEntryNotFoundError: offline mode is enabled")
    assert headers.startswith("unreachable: OfflineModeIsEnabled")


def test_offline_a_model_that_was_never_fetched_is_one_error(tmp_path):
    """With huggingface_hub as it is: it asks nobody."""
    code = "from jlora import models; models.load('owner/name')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: 'owner/name' is no file or folder here, and as a model")
    assert "it could not be fetched" in last
