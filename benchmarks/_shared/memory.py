"""What a compiled program has in memory, by the compiler's own account."""

from typing import Any


def allocated(memory: Any) -> int:
    """Bytes of arguments, results and temporaries of a ``memory_analysis()``, donated ones once."""
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes
