"""Eight devices of the CPU, before JAX is imported; these tests run by themselves."""

import os

DEVICES = "--xla_force_host_platform_device_count=8"

if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import on_meshes  # noqa: E402
import pytest  # noqa: E402
from fast_compiles import compile_fast, compiled_as_ever  # noqa: E402

# One program at a time: programs of eight devices that wait for one another stop for good.
compile_fast(jax_cpu_enable_async_dispatch=False)
if jax.device_count() != 8:
    raise RuntimeError(f"expected 8 devices, got {jax.devices()}: set XLA_FLAGS={DEVICES}")


@pytest.fixture(params=on_meshes.USUAL)
def on(request):
    """Each mesh in turn."""
    return on_meshes.devices(request.param)


@pytest.fixture(scope="module", name="compiled_as_ever")
def _compiled_as_ever():
    with compiled_as_ever():
        yield
