"""How much memory a run took."""

from __future__ import annotations

import sys


def peak_memory() -> str:
    """The most memory that this process held, in words.

    Example:
        >>> import jlora
        >>> jlora.trainer.peak_memory()
        '... GiB of memory at most'
    """
    try:
        import resource
    except ImportError:  # Windows
        return "memory not measured"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return f"{peak / unit:.1f} GiB of memory at most"
