"""What a chip computes and sends at best, as its maker publishes it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates a second."""

    flops: float  # of products in bfloat16
    link: float  # bytes that it sends to others of its slice or node, over all of its links
    node: int | None = None  # chips behind faster links than the rest
    beyond: float = 0.0  # bytes that a chip sends out of its node


# Google Cloud's pages of each TPU (docs.cloud.google.com/tpu/docs/v5e, v5p and v6e): 1600, 4800 and
# 3584 Gbit/s a chip. NVIDIA's data sheet of the H100 SXM: 900 GB/s of NVLink, both ways together;
# its DGX H100 has a link of 400 Gbit/s for each GPU.
CHIPS = {
    "v5e": Chip(197e12, 200e9),
    "v5p": Chip(459e12, 600e9),
    "v6e": Chip(918e12, 448e9),
    "h100": Chip(989e12, 450e9, node=8, beyond=50e9),
}


def seconds(chip: Chip, weights: float, activations: float, chips: int, sharing: int) -> float:
    """How long the chip sends at best, nothing beside it.

    What goes along the FSDP axis crosses nodes once for all chips of a node that are in the same
    group; what a group shares the work on stays in a node.

    Args:
        chip: its rates.
        weights: bytes that it sends along the FSDP axis.
        activations: bytes that it sends along the model axis.
        chips: all of them.
        sharing: chips along the model axis.
    """
    rate = chip.link
    if chip.node is not None and chips > chip.node:
        rate = min(rate, chip.beyond * chip.node / sharing)
    return weights / rate + activations / chip.link
