"""How A and B start: a registry of functions from a weight to a first A and B.

A start sees one leaf as a stack of matrices. Where its A B is not zero, `split` takes
``scaling * A B`` out of the frozen weight, so that the adapted function is the base function still.
"""

from __future__ import annotations

import functools
import re

from jlora._starts._decomposed import from_data, olora, pissa
from jlora._starts._random import drawn as drawn
from jlora._starts._random import gaussian, kaiming, orthogonal
from jlora._starts._start import Matrices as Matrices
from jlora._starts._start import Start as Start

STARTS: dict[str, Start] = {
    "kaiming": Start(kaiming),
    "gaussian": Start(gaussian),
    "orthogonal": Start(orthogonal, even_rank=True),
    "pissa": Start(pissa, moves_weight=True),
    "olora": Start(olora, moves_weight=True),
    "lora_ga": Start(from_data, moves_weight=True),
}
_FAST_PISSA = r"pissa_niter_\d+"
NAMES = (*STARTS, _FAST_PISSA)  # as patterns


@functools.cache
def find(name: str) -> Start:
    """The start of this name, one of `NAMES`."""
    if re.fullmatch(_FAST_PISSA, name):
        iterations = int(name.rpartition("_")[2])
        return Start(functools.partial(pissa, iterations=iterations), moves_weight=True)
    return STARTS[name]
