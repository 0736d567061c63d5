"""What a decoder's layers keep for the gradient, changed for as long as a block lasts."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jlora.models._net import _decoder


@contextlib.contextmanager
def keeping(policy: Any) -> Iterator[None]:
    """Layers of decoders that are traced within keep what this policy says."""
    before, _decoder.PRODUCTS = _decoder.PRODUCTS, policy
    try:
        yield
    finally:
        _decoder.PRODUCTS = before
