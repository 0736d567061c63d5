"""Weights in a few bits: one file a format."""

import functools

import jax

from jlora._lowrank import Axes
from jlora._quantised._block_weight import FORMATS as BLOCKS
from jlora._quantised._block_weight import BlockWeight as BlockWeight
from jlora._quantised._four_bits import FourBitWeight as FourBitWeight
from jlora._quantised._fp8 import Fp8Weight as Fp8Weight
from jlora._quantised._int8 import Int8Weight as Int8Weight
from jlora._quantised._mixed_stack import MixedStack as MixedStack
from jlora._quantised._places import place_of as place_of
from jlora._quantised._places import places_of as places_of
from jlora._quantised._weight import QuantizedWeight as QuantizedWeight

# A name -> the class of its leaves; those that are only read are among them.
FORMATS: dict[str, type[QuantizedWeight]] = {
    "int8": Int8Weight,
    "nf4": FourBitWeight,
    "fp4": FourBitWeight,
    "fp8": Fp8Weight,
    **dict.fromkeys(BLOCKS, BlockWeight),
}
WRITTEN = ("int8", "nf4", *(name for name, its in BLOCKS.items() if its.encode is not None))


@functools.partial(jax.jit, static_argnums=(1, 2))
def encoded(weight: jax.Array, axes: Axes, format: str) -> QuantizedWeight:
    """A weight that is used so, in a format that is written."""
    return FORMATS[format].encoded(weight, axes, format)
