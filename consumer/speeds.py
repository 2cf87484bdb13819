"""How long device calls take here, by model and size, as heartbeats say it: `dreamdrop estimate` reckons with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.lru import LruCache

if TYPE_CHECKING:
    from consumer.renderer.protocol import DeviceCall

KINDS = 16  # models and sizes that are told, the latest ones; so a heartbeat grows by 3 KB at most
_MAX_ROWS = 256  # of a call; larger ones count as such
_FADES = 0.98  # weight that a measurement loses with each newer one: the last fifty count


@dataclass
class _Mean:
    """Seconds for a row, in which older calls count less and less.

    The first call of a shape is slow, because the device's libraries choose their kernels then. So it counts only
    until there is a second one.
    """

    seconds: float = 0.0
    rows: float = 0.0
    calls: int = 0

    def add(self, seconds: float, rows: int) -> None:
        fades = 0.0 if self.calls == 1 else _FADES
        self.seconds, self.rows = fades * self.seconds + seconds, fades * self.rows + rows
        self.calls += 1

    @property
    def milliseconds(self) -> float:
        return 1000 * self.seconds / self.rows


@dataclass
class _Kind:
    """What is known of one model at one size."""

    unet: dict[int, _Mean] = field(
        default_factory=dict
    )  # by the rows of a call, rounded down to a power of two
    image: _Mean = field(default_factory=_Mean)  # an image beside its UNet calls
    begun: float = (
        0.0  # seconds of the text encoder and the VAE's encoder, for images that are not decoded yet
    )

    def called(self, call: DeviceCall) -> None:
        if call.kind == "unet":
            size = 1 << (min(call.rows, _MAX_ROWS).bit_length() - 1)
            self.unet.setdefault(size, _Mean()).add(call.busy, call.rows)
        elif call.kind == "decode":
            self.image.add(self.begun + call.busy, call.rows)
            self.begun = 0.0
        elif call.kind != "side":  # no other image has the time of a ControlNet
            self.begun += call.busy


class Speeds:
    """What one worker has measured. A call is charged with the device's idle time before it, if there was work."""

    def __init__(self) -> None:
        self._kinds: LruCache[tuple[str, int], _Kind] = LruCache(KINDS)

    def called(self, call: DeviceCall) -> None:
        """Take note of one device call."""
        self._kinds.setdefault((call.model, call.pixels), _Kind()).called(call)

    def facts(self) -> list[dict[str, Any]]:
        """As a heartbeat says it, the latest kind last.

        Each has `model`, `pixels`, `row_ms` (milliseconds of one row in one UNet call, by the least rows that the
        call had: a power of two) and `image_ms` (of an image: text encoder and VAE; null before the first).
        """
        return [
            {
                "model": model,
                "pixels": pixels,
                "row_ms": {str(n): round(mean.milliseconds, 3) for n, mean in sorted(kind.unet.items())},
                "image_ms": round(kind.image.milliseconds, 3) if kind.image.calls else None,
            }
            for (model, pixels), kind in [(key, self._kinds[key]) for key in list(self._kinds)]
            if kind.unet
        ]
