"""Which workers are alive, judged by the observer's own clock only.

A heartbeat is an object that its worker overwrites. Its content does not matter; that it *changes*
does. A worker is presumed dead when its heartbeat has been the same, or missing, for a lease since this
observer first saw it so. A wrong judgment costs a second rendering, never a result.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.claims.claim import Release, Timing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(slots=True)
class Watch:
    """The other workers as this one has seen them."""

    timing: Timing
    rng: random.Random
    _beats: dict[str, tuple[str | None, float]] = field(default_factory=dict)  # session to (etag, since)
    _ripe_at: dict[str, float] = field(default_factory=dict)  # release marker's key to seconds

    def observe(self, beats: Mapping[str, str], owners: Collection[str], at: float) -> None:
        """Record the heartbeats of a listing.

        Args:
            beats: session to etag.
            owners: sessions that own claims, with or without a heartbeat.
            at: seconds by our clock, read after the listing was complete.
        """
        sessions = beats.keys() | set(owners)
        for gone in self._beats.keys() - sessions:
            del self._beats[gone]
        for session in sessions:
            known, etag = self._beats.get(session), beats.get(session)
            if known is None or known[0] != etag:
                self._beats[session] = (etag, at)

    def unchanged(self, session: str, asked: float) -> float:
        """For how many seconds a heartbeat had not changed when the listing was requested."""
        known = self._beats.get(session)
        return 0.0 if known is None else asked - known[1]

    def is_dead(self, session: str, asked: float) -> bool:
        return self.unchanged(session, asked) >= self.timing.lease

    def dead(self, asked: float) -> set[tuple[str, str | None]]:
        """The sessions that are presumed dead, each with its last heartbeat's etag."""
        return {(session, etag) for session, (etag, _) in self._beats.items() if self.is_dead(session, asked)}

    def is_ripe(self, key: str, attempt: int, release: Release, at: float) -> bool:
        """Whether a released claim may be taken. A retry waits first, from when we first saw its marker."""
        if release.reason == "drain" or attempt >= self.timing.max_attempts:
            return True
        if key not in self._ripe_at:
            waits = self.timing.retry_after or (0.0,)
            wait = waits[min(attempt, len(waits)) - 1]
            self._ripe_at[key] = at + wait * (1 + self.rng.random() / 4)  # jitter: not all observers at once
        return at >= self._ripe_at[key]

    def soonest(self, now: float, *, but: str) -> float:
        """Seconds until the next lease (of any session except `but`) or wait runs out; infinite if none does."""
        leases = [since + self.timing.lease for owner, (_, since) in self._beats.items() if owner != but]
        return min((at - now for at in [*leases, *self._ripe_at.values()] if at > now), default=math.inf)

    def forget_markers(self, listed: Collection[str]) -> None:
        """Drop the waits of markers that are not listed any more. `listed`: keys."""
        for gone in self._ripe_at.keys() - set(listed):
            del self._ripe_at[gone]
