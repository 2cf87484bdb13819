"""Batch sizes, measured on the device: how many rows of a UNet call pay.

More rows in a call help as long as one image leaves the device partly idle. Beyond that they
only make every image wait. So for each kind of call (model, shape, precision, LoRAs) full calls of
2, 4, 8, ... rows are timed once under load, up to where a row gets no cheaper, and the size is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.lru import LruCache

if TYPE_CHECKING:
    from collections.abc import Hashable

KINDS = 10_000  # kinds of calls whose size is kept: a client's sizes and LoRA weights make new ones for ever
_SAMPLES = 3  # calls of one size; the fastest counts, because noise only adds time
_WORTH = 0.97  # a row must cost less than this share of what it cost at half the size


@dataclass(slots=True)
class _Probe:
    size: int = 2
    samples: list[float] = field(default_factory=list)  # seconds per row at this size
    before: float = float("inf")  # seconds per row at half the size
    settled: bool = False


@dataclass
class BatchSizer:
    """The number of rows that pays, for each kind of call."""

    max_rows: int
    _probes: LruCache[Hashable, _Probe] = field(default_factory=lambda: LruCache(KINDS))

    def rows(self, key: Hashable) -> int:
        """How many rows the next call should have."""
        return min(self._probes.setdefault(key, _Probe()).size, self.max_rows)

    def measuring(self, key: Hashable) -> bool:
        """Whether the next call is to be timed."""
        return not self._probes.setdefault(key, _Probe()).settled

    def record(self, key: Hashable, rows: int, seconds: float) -> None:
        """Take a call's time; a call that was not full is ignored."""
        probe = self._probes.setdefault(key, _Probe())
        if probe.settled or rows != self.rows(key):
            return
        probe.samples.append(seconds / rows)
        if len(probe.samples) < _SAMPLES:
            return
        fastest = min(probe.samples)
        if fastest > _WORTH * probe.before:
            probe.size //= 2
            probe.settled = True
        elif probe.size >= self.max_rows:
            probe.settled = True
        else:
            probe.size, probe.before, probe.samples = probe.size * 2, fastest, []
