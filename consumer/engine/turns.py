"""Whose turn it is on the device: shares by time, not by the number of calls. No torch here.

The express lane gets three quarters of the device's time while both lanes have calls, and all of it
otherwise. Inside a lane, each batch key (model, size, LoRAs) gets an equal share: a large picture whose
steps take seconds waits until the small ones have had as many seconds.

This is start-time fair queueing (Goyal, Vin, Cheng 1996). Who comes anew begins at the time of the one that
was served last: it is owed nothing for the time that it was away, and goes before those that were served since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from consumer.engine.in_flight import InFlight

EXPRESS_SHARE = 3.0  # parts of the device's time for the express lane, for each one of the other
_KEPT = 1000  # batch keys whose time is kept: sizes and solo requests come and go


class FairShares:
    """Time that several names have had, as needed to share it."""

    def __init__(self, weights: Mapping[Hashable, float] | None = None) -> None:
        """
        Args:
            weights: parts of the time for each name; 1 without one.
        """
        self._weights = weights or {}
        self._had: dict[Hashable, float] = {}  # seconds by weight
        self._now = 0.0  # what the one that was served last had before

    def next(self, names: Sequence[Hashable]) -> Hashable:
        """The one that has had least; of equals the first."""
        return min(names, key=self._start)

    def charge(self, name: Hashable, seconds: float) -> None:
        """Note that one of them had the device for so long."""
        self._now = max(self._now, self._start(name))
        self._had[name] = self._start(name) + seconds / self._weights.get(name, 1.0)
        if len(self._had) > _KEPT:
            self._had = {name: had for name, had in self._had.items() if had > self._now}

    def _start(self, name: Hashable) -> float:
        return max(self._had.get(name, 0.0), self._now)


class Turns:
    """The shares of one device."""

    def __init__(self) -> None:
        self._lanes = FairShares({True: EXPRESS_SHARE})
        self._keys = {True: FairShares(), False: FairShares()}

    def next(self, paused: Sequence[InFlight]) -> tuple[bool, Hashable]:
        """The lane (True: express) and the batch key whose calls run now.

        Args:
            paused: not empty; the oldest call first.
        """
        lanes = sorted({image.task.express for image in paused}, reverse=True)  # of equals the express lane
        express = bool(self._lanes.next(lanes))
        keys = dict.fromkeys(image.batch_key for image in paused if image.task.express == express)
        return express, self._keys[express].next(list(keys))

    def charge(self, express: bool, key: Hashable, seconds: float) -> None:
        """Note how long a call of a lane and a batch key took."""
        self._lanes.charge(express, seconds)
        self._keys[express].charge(key, seconds)
