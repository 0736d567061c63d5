"""H100s, as XLA's compiler for CUDA wants them told when there is none to ask."""

from typing import Any

from jax.experimental import topologies

MEMORY = 84_929_347_584  # bytes that the driver shows
NODE = 8  # GPUs

# NVIDIA's data sheet of the H100 SXM, and what its driver answers (as in XLA's own list of GPUs,
# xla/tools/hlo_opt/gpu_specs/h100_sxm.txtpb).
_DEVICE = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "memory_bandwidth": 3_352_320_000_000,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
    "device_memory_size": MEMORY,
    "cuda_compute_capability": {"major": 9, "minor": 0},
}
_TARGET = {
    "gpu_device_info": _DEVICE,
    "platform_name": '"CUDA"',
    "dnn_version_info": {"major": 9, "minor": 8},
    "runtime_version": {"major": 12, "minor": 9},
    "device_description_str": '"NVIDIA H100 80GB HBM3"',
}


def devices(count: int) -> Any:
    """So many H100s, in nodes of eight."""
    topology = f"1x{-(-count // NODE)}x{min(count, NODE)}"
    its = {"target_config": _text(_TARGET), "topology": topology}
    return topologies.get_topology_desc(platform="cuda", **its).devices


def _text(message: dict[str, Any]) -> str:
    """A protocol buffer in its text form."""
    parts = (
        f"{name} {{ {_text(value)} }}" if isinstance(value, dict) else f"{name}: {value}"
        for name, value in message.items()
    )
    return " ".join(parts)
