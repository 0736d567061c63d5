"""How the learning rate goes: up in the warm-up, and down to zero."""

from __future__ import annotations

import optax

SCHEDULES = ("cosine", "linear", "constant", "wsd")

_FALL = 0.2  # of the steps: the last part of "wsd"


def schedule(name: str, peak: float, *, steps: int, warmup: int) -> optax.Schedule:
    """The learning rate as a function of the updates done.

    All rise in a line to ``peak`` over ``warmup`` updates, of which the first is not zero.
    ``"cosine"`` and ``"linear"`` then fall to zero at ``steps``, ``"constant"`` stays, and
    ``"wsd"`` (warm-up, stable, decay) stays and falls in a line over the last fifth.

    Args:
        name: one of `SCHEDULES`.
        peak: the largest rate.
        steps: updates in all.
        warmup: updates of the warm-up; at least one is taken.

    Raises:
        ValueError: when the name is none of them.

    Source: "wsd": Hu et al. 2024, "MiniCPM", arXiv 2404.06395, section 4.

    Example:
        >>> import jlora
        >>> rate = jlora.trainer.schedule("wsd", 0.5, steps=100, warmup=10)
        >>> [round(float(rate(at)), 3) for at in (0, 10, 80, 90, 100)]
        [0.05, 0.5, 0.5, 0.25, 0.0]
    """
    warmup = max(1, warmup)
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=peak / warmup,
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=max(steps, warmup + 1),
        )
    rise = optax.linear_schedule(peak / warmup, peak, warmup)
    if name == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}: expected one of {', '.join(SCHEDULES)}")
    falls = max(warmup, steps - round(_FALL * steps)) if name == "wsd" else warmup
    fall = optax.linear_schedule(peak, 0.0, max(1, steps - falls))
    return optax.join_schedules([rise, optax.constant_schedule(peak), fall], [warmup, falls])
