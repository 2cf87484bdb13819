"""The estimate itself: from counted work and measured times to seconds of a device, a finish and a cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.planning.speeds import Speed, Speeds
from producer.planning.work import Work

if TYPE_CHECKING:
    from producer.planning.work import Piece

EXPRESS_SHARE = 3 / 4  # of a device's time, while both lanes have work (`consumer/engine/admission.py`)


@dataclass(frozen=True, slots=True)
class Line:
    """The work for one model at one size."""

    model: str
    pixels: int
    images: float
    row_steps: float
    speed: Speed | None  # None: nobody has measured the model

    @property
    def seconds(self) -> float:
        """Of one device."""
        if self.speed is None:
            return 0.0
        return (self.row_steps * self.speed.row_ms + self.images * self.speed.image_ms) / 1000


@dataclass(frozen=True, slots=True)
class Costing:
    """Turns work into seconds: by what workers have measured, or by what the caller says of a step."""

    speeds: Speeds
    devices: int
    step_ms: float | None = None  # of one image with guidance at its model's own size
    natives: dict[str, int] | None = None  # pixels of each model's own size, for `step_ms`

    def lines(self, work: Work) -> list[Line]:
        return [
            Line(model, pixels, of_kind.images(), of_kind.row_steps(), self._speed(model, pixels, of_kind))
            for (model, pixels), of_kind in work.kinds()
        ]

    def seconds(self, work: Work) -> float:
        """Of one device; what nobody has measured counts as nothing."""
        return sum(line.seconds for line in self.lines(work))

    def unmeasured(self, work: Work) -> list[str]:
        """The models that nobody has measured."""
        return sorted({line.model for line in self.lines(work) if line.speed is None})

    def longest(self, work: Work) -> float:
        """Seconds of the image that takes longest, alone on a device: no number of devices makes it faster."""
        return max((self._alone(piece) for piece in work.pieces), default=0.0)

    def _alone(self, piece: Piece) -> float:
        seconds = 0.0
        for one in piece.passes():
            if (speed := self._find(one.model, one.pixels, one.rows)) is not None:
                seconds += (one.calls * one.rows * speed.row_ms + speed.image_ms) / 1000
        return seconds

    def _speed(self, model: str, pixels: int, work: Work) -> Speed | None:
        """Images of one kind share calls: as many rows as all images have at once, on each device."""
        rows = sum(piece.images * piece.rows * count for piece, count in work.pieces.items()) / self.devices
        return self._find(model, pixels, rows)

    def _find(self, model: str, pixels: int, rows: float) -> Speed | None:
        if self.step_ms is None:
            return self.speeds.find(model, pixels, rows)
        native = (self.natives or {}).get(model, pixels)
        return Speed(self.step_ms / 2 * pixels / native, 0.0, 0, native)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What requests will take. Seconds are those of a clock, but for `device_seconds`."""

    lines: list[Line]
    device_seconds: float
    before: dict[bool, float]  # of a device, by lane (True: express): what waits already
    finish: dict[bool, float]  # from now, by the lane in which the requests are dropped
    unmeasured: list[str]  # models, of the requests and of what waits


def estimate(work: Work, waiting: dict[bool, Work], costing: Costing) -> Estimate:
    """Estimate the requests' own work, and when it is done behind what waits.

    All devices share the work evenly. Requests of the express lane go before all others, and have three quarters of
    the devices while others wait.
    """
    own, longest = costing.seconds(work), costing.longest(work)
    before = {lane: costing.seconds(of_lane) for lane, of_lane in waiting.items()}
    express = before[True] + own
    finish = {
        False: (before[True] + before[False] + own) / costing.devices,
        True: min(express / EXPRESS_SHARE, express + before[False]) / costing.devices,
    }
    return Estimate(
        costing.lines(work),
        own,
        before,
        {lane: max(seconds, longest) for lane, seconds in finish.items()},
        sorted({name for each in (work, *waiting.values()) for name in costing.unmeasured(each)}),
    )
