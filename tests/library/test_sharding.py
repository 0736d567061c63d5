"""The laws on a mesh of eight devices, which a process must ask for before JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jlora


def test_the_laws_hold_on_a_mesh():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "on_a_mesh.py")],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "all hold"


def test_leaves_without_a_layout_are_named():
    frozen, lora = jlora.split(
        {"w": jnp.ones((7, 11)), "v": jnp.ones((11, 7))},
        jlora.LoraConfig(targets="w|v", rank=2),
        jax.random.key(0),
    )
    with pytest.raises(ValueError, match=r"w: expected a NamedSharding, got SingleDevice"):
        jlora.shardings(frozen, lora)
    with pytest.raises(ValueError, match=r"v: expected a NamedSharding, got no such leaf"):
        jlora.shardings({"w": frozen["w"]}, lora)
