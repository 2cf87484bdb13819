"""What live workers say of the times of their device calls (`consumer/speeds.py` writes it into heartbeats)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_MOST = 1e7  # milliseconds; more is no measurement


@dataclass(frozen=True, slots=True)
class Measured:
    """One worker's times for one model at one size."""

    pixels: int
    row_ms: Mapping[int, float]  # milliseconds of a row in a call, by the least rows that the call had
    image_ms: float  # of an image beside its UNet calls
    devices: int

    def row(self, rows: float) -> float:
        """Milliseconds of a row where calls may have so many rows: those of the fullest call that was measured."""
        fits = [least for least in self.row_ms if least <= rows]
        return self.row_ms[max(fits) if fits else min(self.row_ms)]


@dataclass(frozen=True, slots=True)
class Speed:
    """What one device needs, on the average of those that have measured it."""

    row_ms: float
    image_ms: float
    workers: int  # that have measured it; 0: the caller said it
    pixels: int  # at which it was measured; if it was another size, the times are scaled by the pixels


@dataclass
class Speeds:
    """Measured times by model."""

    models: dict[str, list[Measured]] = field(default_factory=dict)
    devices: int = 0  # of all live workers

    @classmethod
    def read(cls, beats: Iterable[Mapping[str, Any]]) -> Self:
        """From the heartbeats of live workers; what cannot be read is left out."""
        speeds = cls()
        for beat in beats:
            devices = beat.get("devices")
            count = max(1, len(devices)) if isinstance(devices, list) else 1
            speeds.devices += count
            told = beat.get("speeds")
            for entry in told if isinstance(told, list) else ():
                if isinstance(entry, dict) and (measured := _measured(entry, count)) is not None:
                    speeds.models.setdefault(str(entry.get("model")), []).append(measured)
        return speeds

    def find(self, model: str, pixels: int, rows: float) -> Speed | None:
        """The times for a model at a size; None if nobody has measured the model.

        Each worker counts with the size next to this one. The workers share the work, so the mean is that of their
        rates.

        Args:
            rows: that calls could have, if all the work shared them.
        """
        plain = model.partition("@")[0]
        told = self.models.get(model) or [
            one for name, ones in self.models.items() if name.partition("@")[0] == plain for one in ones
        ]
        if not told:
            return None
        apart = min(_apart(one.pixels, pixels) for one in told)
        near = [one for one in told if _apart(one.pixels, pixels) == apart]
        devices = sum(one.devices for one in near)
        scale = pixels / near[0].pixels
        row_ms = devices / sum(one.devices / one.row(rows) for one in near)
        image_ms = sum(one.devices * one.image_ms for one in near) / devices
        return Speed(row_ms * scale, image_ms * scale, len(near), near[0].pixels)


def _apart(one: int, other: int) -> float:
    return abs(math.log(one / other))


def _measured(entry: Mapping[str, Any], devices: int) -> Measured | None:
    pixels, rows, image = entry.get("pixels"), entry.get("row_ms"), entry.get("image_ms")
    if type(pixels) is not int or pixels < 1 or not isinstance(rows, dict):
        return None
    known = {int(least): float(ms) for least, ms in rows.items() if _is_count(least) and _is_time(ms)}
    image_ms = float(image) if image is not None and _is_time(image) else 0.0
    return Measured(pixels, known, image_ms, devices) if known else None


def _is_count(text: object) -> bool:
    return (
        isinstance(text, str) and text.isascii() and text.isdecimal() and 0 < len(text) < 6 and int(text) > 0
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < _MOST
