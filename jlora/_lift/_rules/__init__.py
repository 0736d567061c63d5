"""What each primitive does with a weight: one rule each, registered by name.

A rule says where the dimensions go, what becomes of the factors on them, and when it declines. It
serves every runner of the walk alike: what one of them follows, all follow.
"""

from jlora._lift._rules import (  # noqa: F401 - they register themselves
    _arithmetic,
    _control_flow,
    _convolutions,
    _custom_derivatives,
    _devices,
    _indexing,
    _joining,
    _movement,
    _products,
    _ragged_products,
    _updates,
)
