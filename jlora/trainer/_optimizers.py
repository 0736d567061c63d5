"""The optimizers by name, with weight decay on A and B alone."""

from __future__ import annotations

from collections.abc import Callable

import optax
import optax.contrib

from jlora import _optim


def _adamw(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=decay, mask=_optim.decay_mask)


def _adafactor(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    # B starts at zero: an update in multiples of its own size would not move it
    return _decayed(optax.adafactor(None, multiply_by_parameter_scale=False), rate, decay)


def _lion(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    return optax.lion(rate, weight_decay=decay, mask=_optim.decay_mask)


def _muon(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    # its own decay would take magnitudes along, which are Adam's
    muon = optax.contrib.muon(1.0, muon_weight_dimension_numbers=_optim.muon_dimensions)
    return _decayed(muon, rate, decay)


def _sgd(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    return _decayed(optax.scale(-1.0), rate, decay)


def _decayed(
    descent: optax.GradientTransformation, rate: optax.Schedule, decay: float
) -> optax.GradientTransformation:
    """``rate * (descent - decay * parameter)``, as AdamW has it."""
    return optax.chain(
        descent,
        optax.add_decayed_weights(-decay, mask=_optim.decay_mask),
        optax.scale_by_schedule(rate),
    )


_MAKERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}
OPTIMIZERS = tuple(_MAKERS)


def update_rule(
    name: str,
    rate: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    clip: float = 0.0,
    lora_plus: float = 1.0,
) -> optax.GradientTransformation:
    """The optax transformation of this name, for `jlora.optimizer`.

    Args:
        name: one of `OPTIMIZERS`: ``"adamw"``, ``"adafactor"`` (without scaling by the parameter's
            size), ``"lion"``, ``"muon"`` (each layer's A and B as a matrix; the rest by Adam), or
            ``"sgd"``.
        rate: the learning rate as a function of the updates done.
        weight_decay: times the learning rate, taken off A and B at each update; never off
            magnitudes and what trains whole.
        clip: the largest norm of the gradient over all that trains; 0 is no limit.
        lora_plus: B's learning rate in multiples of A's, see `jlora.lora_plus`.

    Raises:
        ValueError: when the name is none of them, or a number is out of its range.

    Example:
        >>> import optax
        >>> import jlora
        >>> rate = optax.constant_schedule(1e-3)
        >>> rule = jlora.trainer.update_rule("lion", rate, weight_decay=0.1, clip=1.0)
        >>> tx = jlora.optimizer(rule)
    """
    if name not in _MAKERS:
        raise ValueError(f"optimizer is {name!r}: expected one of {', '.join(OPTIMIZERS)}")
    for what, value in (("weight_decay", weight_decay), ("clip", clip)):
        if not value >= 0:
            raise ValueError(f"{what} is {value}: expected a number of at least 0")
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        _MAKERS[name](rate, weight_decay),
        _optim.lora_plus(lora_plus),
    )
