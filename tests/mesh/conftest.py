"""Eight devices of the CPU, before JAX is imported; these tests run by themselves."""

import os
import sys

DEVICES = "--xla_force_host_platform_device_count=8"

if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    if "jax" in sys.modules:
        raise RuntimeError("JAX is imported already: `pytest tests/mesh` runs these tests alone")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import on_meshes  # noqa: E402
import pytest  # noqa: E402
from fast_compiles import compile_fast  # noqa: E402

compile_fast()
if jax.device_count() != 8:
    raise RuntimeError(f"expected 8 devices, got {jax.devices()}: set XLA_FLAGS={DEVICES}")


@pytest.fixture(params=on_meshes.USUAL)
def on(request):
    """Each mesh in turn."""
    return on_meshes.devices(request.param)


@pytest.fixture(scope="module")
def compiled_as_ever():
    """With XLA's optimisations: for the collectives that a user's program has."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_enable_compilation_cache", True)
