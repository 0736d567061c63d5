"""The slices that are offered, smallest first, and what a chip of each generation holds."""

import dataclasses
import math
from typing import Any

from jax.experimental import topologies

from benchmarks.ahead import _gpus

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Slice:
    """So many chips of one generation: a TPU's in one torus, GPUs in a row."""

    generation: str
    shape: str

    def __str__(self) -> str:
        return f"{self.generation}:{self.shape}"

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.shape.split("x")))

    @property
    def memory(self) -> int:
        """Bytes of one chip's HBM."""
        return MEMORY[self.generation]

    def devices(self) -> Any:
        """What a compiler needs to know of them."""
        if self.generation == "h100":
            return _gpus.devices(self.chips)
        alone = {"chips_per_host_bounds": (1, 1, 1)} if self.chips == 1 else {}
        topology = topologies.get_topology_desc(platform="tpu", topology_name=str(self), **alone)
        return topology.devices


MEMORY = {"v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB, "h100": _gpus.MEMORY}
SHAPES = {
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "h100": "1 2 4 8 16 32",
}
SLICES = {name: [Slice(name, shape) for shape in SHAPES[name].split()] for name in SHAPES}
