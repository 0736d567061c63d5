"""The settings of a config.json that say how far back each layer sees, and which are rotated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jlora.models._families._settings import Settings
from jlora.models._net._config import DecoderConfig

FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclasses.dataclass(frozen=True)
class OneWindow:
    """The same window in all layers: ``sliding_window``, which a switch may turn off."""

    switch: str | None = None

    def read(self, settings: Settings) -> dict[str, Any]:
        """windows."""
        window, layers = _window(settings, self.switch), settings.get("num_hidden_layers")
        return {"windows": None if window is None else (window,) * (layers or 0)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """sliding_window, and the switch."""
        return _written(config, self.switch)


@dataclasses.dataclass(frozen=True)
class LayerWindows:
    """A window in the layers of kind sliding_attention: ``layer_types``, or the family's pattern.

    The pattern is every so manieth layer without a window (``sliding_window_pattern``), or the
    first ones (``max_window_layers``), or what ``slides`` says of a layer.
    """

    switch: str | None = None
    every: int | None = None
    slides: Callable[[Settings, int], bool] | None = None

    def read(self, settings: Settings) -> dict[str, Any]:
        """windows."""
        window = _window(settings, self.switch)
        layers = settings.get("num_hidden_layers", 0)
        slides = lambda at: window is not None and self._slides(settings, at)  # noqa: E731
        local = kinds_of(settings, _SLIDING, layers, slides)
        if not any(local):
            return {"windows": None}
        if window is None:
            settings.problems.append(f"layer_types has {_SLIDING!r}, but there is no window")
            return {}
        return {"windows": tuple(window if slides else None for slides in local)}

    def _slides(self, settings: Settings, layer: int) -> bool:
        if self.slides is not None:
            return self.slides(settings, layer)
        if self.every is None:
            return layer >= settings.get("max_window_layers", 28)
        every = settings.number("sliding_window_pattern", needed=False) or self.every
        return (layer + 1) % every != 0

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """layer_types, sliding_window, and the switch."""
        windows = config.windows or (None,) * config.layers
        kinds = [FULL if window is None else _SLIDING for window in windows]
        return {"layer_types": kinds, **_written(config, self.switch)}


def kinds_of(
    settings: Settings, kind: str, layers: int, otherwise: Callable[[int], bool]
) -> list[bool]:
    """Which layers are of this kind by ``layer_types``, or else by the family's pattern."""
    kinds = settings.get("layer_types")
    kinds = kinds or [kind if otherwise(layer) else FULL for layer in range(layers)]
    if len(kinds) != layers:
        settings.problems.append(f"layer_types has {len(kinds)} entries, expected {layers}")
    if unknown := sorted({repr(each) for each in kinds} - {repr(FULL), repr(kind)}):
        settings.problems.append(
            f"layer_types has {', '.join(unknown)}: expected {FULL!r} or {kind!r}"
        )
    return [each == kind for each in kinds]


def rotates(settings: Settings, layer: int) -> bool:
    """Whether a layer is rotated, by ``no_rope_layers`` or the interval of those that are not."""
    if given := settings.get("no_rope_layers"):
        return layer < len(given) and bool(given[layer])
    return (layer + 1) % settings.get("no_rope_layer_interval", 4) != 0


@dataclasses.dataclass(frozen=True)
class RotatedLayers:
    """``no_rope_layers``, 1 for each layer that is rotated, or the interval of the others."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """rotated."""
        layers = settings.get("num_hidden_layers", 0)
        given = settings.get("no_rope_layers")
        if given and len(given) < layers:
            settings.problems.append(
                f"no_rope_layers has {len(given)} entries, expected at least {layers}"
            )
        rotated = tuple(rotates(settings, layer) for layer in range(layers))
        return {"rotated": None if all(rotated) else rotated}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """no_rope_layers."""
        return {"no_rope_layers": [int(turns) for turns in config.rotated or [1] * config.layers]}


@dataclasses.dataclass(frozen=True)
class ChunkedLayers:
    """Chunks in the layers of kind chunked_attention: ``layer_types``, or all that are rotated."""

    def read(self, settings: Settings) -> dict[str, Any]:
        """chunks."""
        chunk = settings.whole("attention_chunk_size", needed=False) or None
        layers = settings.get("num_hidden_layers", 0)
        cut = lambda at: chunk is not None and rotates(settings, at)  # noqa: E731
        local = kinds_of(settings, _CHUNKED, layers, cut)
        if not any(local):
            return {"chunks": None}
        if chunk is None:
            settings.problems.append(
                f"layer_types has {_CHUNKED!r}, but there is no attention_chunk_size"
            )
            return {}
        return {"chunks": tuple(chunk if cut else None for cut in local)}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """layer_types, attention_chunk_size."""
        chunks = config.chunks or (None,) * config.layers
        largest = max((chunk for chunk in chunks if chunk is not None), default=None)
        kinds = [FULL if chunk is None else _CHUNKED for chunk in chunks]
        return {"layer_types": kinds, "attention_chunk_size": largest}


@dataclasses.dataclass(frozen=True)
class RotatedWindows:
    """`LayerWindows`, where a model with windows rotates the layers that have one and no others."""

    windows: LayerWindows
    otherwise: bool  # whether a model without windows rotates its layers

    def read(self, settings: Settings) -> dict[str, Any]:
        """windows, rotated."""
        layers = settings.get("num_hidden_layers", 0)
        fields = self.windows.read(settings)
        if _window(settings, self.windows.switch) is None:
            return {**fields, "rotated": None if self.otherwise else (False,) * layers}
        windows = fields.get("windows") or (None,) * layers
        rotated = tuple(window is not None for window in windows)
        return {**fields, "rotated": None if all(rotated) else rotated}

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """As `LayerWindows`; a window that no layer has still says that none is rotated."""
        written = self.windows.write(config)
        if written["sliding_window"] is None and config.rotated is not None:
            written["sliding_window"] = config.max_length
        return written


def _window(settings: Settings, switch: str | None) -> int | None:
    if switch is not None and not settings.get(switch, False):
        return None
    return settings.number("sliding_window", needed=False)


def _written(config: DecoderConfig, switch: str | None) -> dict[str, Any]:
    windows = [window for window in config.windows or () if window is not None]
    window = max(windows, default=None)
    return {"sliding_window": window, **({switch: window is not None} if switch else {})}
