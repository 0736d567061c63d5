"""What a logger is, and which values it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Logger(Protocol):
    """Takes the numbers of a step; one of your own goes into `loggers` beside the names.

    Example:
        >>> import jlora
        >>> class Printed:
        ...     def write(self, step, values):
        ...         print(step, dict(values))
        ...     def close(self):
        ...         print("closed")
        >>> logger: jlora.trainer.Logger = Printed()
        >>> logger.write(3, {"loss": 0.5})
        3 {'loss': 0.5}
    """

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Keeps the numbers of the step; a step may come more than once, with other names."""
        ...

    def close(self) -> None:
        """Brings everything that was written to where it belongs."""
        ...


def numbers(values: Mapping[str, Any]) -> dict[str, bool | int | float]:
    """The values as numbers of Python, whatever kind of scalar they are.

    Raises:
        ValueError: when one is no number.
    """
    plain = {name: number(value) for name, value in values.items()}
    wrong = [f"{name} is {values[name]!r:.60}" for name, value in plain.items() if value is None]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected numbers")
    return {name: value for name, value in plain.items() if value is not None}


def number(value: Any) -> bool | int | float | None:
    """The number that the value is, None where it is none."""
    if not isinstance(value, (bool, int, float)) and getattr(value, "size", None) == 1:
        value = value.item()  # of numpy or JAX
    return value if isinstance(value, (bool, int, float)) else None
