"""Which workers are alive, by their heartbeats.

A heartbeat's date comes from another machine's clock, which may be wrong. So whoever looks more than
once judges by change: a heartbeat that changed lately, by our own clock, belongs to a live worker. The
date is only a hint for the first look.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.lru import LruCache
from schemas.layout import WORKERS

if TYPE_CHECKING:
    from infra.stores.store import Info

_REMEMBERED = 10_000  # heartbeats
ALIVE = 60.0  # seconds since its last heartbeat for which a worker counts as alive, for people


def looks_alive(beat: Info) -> bool:
    """Whether an object under `workers/` has a date of about now, by the store's clock and ours."""
    return abs(time.time() - beat.modified) < ALIVE and not beat.key.startswith(f"{WORKERS}.")


@dataclass
class Liveness:
    """What one observer has seen of the heartbeats."""

    clock: Callable[[], float] = time.monotonic
    #: Key to (etag, when it changed); the sessions of months are not kept.
    _seen: LruCache[str, tuple[str, float | None]] = field(default_factory=lambda: LruCache(_REMEMBERED))

    def is_alive(self, beat: Info) -> bool:
        """Whether a listed heartbeat belongs to a live worker."""
        now = self.clock()
        etag, changed = self._seen.get(beat.key, ("", None))
        if etag != beat.etag:
            changed = now if etag or looks_alive(beat) else None  # None: nothing but its date is known
            self._seen[beat.key] = (beat.etag, changed)
        return changed is not None and now - changed < ALIVE and not beat.key.startswith(f"{WORKERS}.")
