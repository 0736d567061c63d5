"""Whether a loss jumped: far above the median of those before, and beyond their noise."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

# In multiples of the median distance from the median; some 4 standard deviations of a normal one.
_NOISE = 6.0


@dataclasses.dataclass(frozen=True)
class Jumps:
    """Watches a series of losses. Each loss gives a new one, `after` it.

    With the level m the median of log(loss) over the last ``window`` losses, and d the median of
    the distances from it, a loss jumps when

        log(loss) - m > max(log(factor), 6 d)

    so neither noise nor a loss that falls is one. It warns once, then not again for as many losses
    as a window holds. Losses that are not finite or not above zero are passed over.

    Raises:
        ValueError: when the window is below 5, or the factor not above 1.

    Example:
        >>> import jlora
        >>> jumps = jlora.trainer.Jumps(window=10)
        >>> for step, loss in enumerate([0.5, 0.6, 0.4, 0.5, 0.5, 0.6, 0.5, 0.4, 0.5, 0.6, 2.0]):
        ...     jumps = jumps.after(step, loss)
        >>> jumps.jumped
        True
        >>> jumps.warning
        'the loss jumped to 2.000 at step 10, 4.0 times the median of the 10 before'
    """

    window: int = 50  # losses
    factor: float = 2.5  # times the median
    _: dataclasses.KW_ONLY
    recent: tuple[float, ...] = ()  # the last losses, at most a window
    quiet: int = 0  # so many more losses without a warning
    warning: str | None = None  # about the last loss, in words

    def __post_init__(self):
        if self.window < 5:
            raise ValueError(f"window is {self.window}: expected at least 5 losses")
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor}: expected a number above 1")

    @property
    def jumped(self) -> bool:
        """Whether the last loss jumped."""
        return self.warning is not None

    def after(self, step: int, loss: float) -> Jumps:
        """What is known after this loss too.

        Args:
            step: updates done.
            loss: of that update.
        """
        if not (math.isfinite(loss) and loss > 0):
            return dataclasses.replace(self, warning=None)
        warning = None if self.quiet else self._warning(step, loss)
        return dataclasses.replace(
            self,
            recent=(*self.recent, loss)[-self.window :],
            quiet=self.window if warning else max(0, self.quiet - 1),
            warning=warning,
        )

    def over(self, rows: Iterable[Mapping[str, Any]], name: str = "loss") -> Jumps:
        """What is known after all of these: how a resumed run goes on.

        Args:
            rows: from `read_metrics`.
            name: of the loss in them; rows without one are passed over.
        """
        jumps = self
        for row in rows:
            if name in row:
                jumps = jumps.after(row["step"], row[name])
        return jumps

    def _warning(self, step: int, loss: float) -> str | None:
        """The words, where the loss is far above those before."""
        if len(self.recent) < min(self.window, 10):
            return None
        logs = [math.log(each) for each in self.recent]
        level = statistics.median(logs)
        spread = statistics.median(abs(each - level) for each in logs)
        if math.log(loss) - level <= max(math.log(self.factor), _NOISE * spread):
            return None
        times = loss / math.exp(level)
        return (
            f"the loss jumped to {loss:.3f} at step {step}, {times:.1f} times the median of the "
            f"{len(logs)} before"
        )
