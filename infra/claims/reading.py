"""Which claims a sweep reads, to learn whose they are.

While all workers live, nobody needs to know. A few workers read every claim all the same, each once: that finds
everything at the first look. In a large fleet it would cost as many reads a request as there are workers. There others'
claims are read only when a worker has died, or when they have been listed for long, as their worker may have no
heartbeat any more. Then few workers read each claim at first, and ever more of them while it stays.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass, field

from infra.claims.ledger import Group, Ledger
from infra.stores.store import Info

_OLD = 4  # leases for which a claim stays unread; then two workers read it, and twice as many after as long again
_JUDGES = 4  # workers that read a claim when a worker has died; twice as many after each lease
_DOUBLINGS = 60.0  # at most: all workers that there can be


@dataclass(slots=True)
class Reading:
    """One session's choice."""

    ledger: Ledger
    _first_seen: dict[tuple[str, str], float] = field(default_factory=dict)  # claims not read, by (key, etag)
    #: Dead sessions, with their heartbeats' etags, and since when we know, by our clock.
    _deaths: dict[tuple[str, str | None], float] = field(default_factory=dict)

    def choose(
        self, groups: dict[str, Group], dead: set[tuple[str, str | None]], asked: float, workers: int
    ) -> list[Info]:
        """The newest claims that are to be read now, of those that were not.

        Args:
            dead: sessions that are presumed dead, each with its last heartbeat's etag.
            asked: when the listing was requested, by our clock.
            workers: how many have a heartbeat.
        """
        self._note_mine(groups, asked)
        self._deaths = {death: self._deaths.get(death, asked) for death in dead}
        ledger, unread, wanted = self.ledger, {}, []
        deaths = sorted(self._deaths.values())
        for id, group in groups.items():
            if not group.claims:
                continue
            info, held = group.claims[group.top], ledger.held.get(id)
            if ledger.is_read(info) or (held is not None and held.claim.epoch == group.top):
                continue
            version = (info.key, info.etag)
            seen = unread[version] = self._first_seen.get(version, asked)
            # Ours, and not held: we got no answer to its create, or could not delete it.
            certain = id in ledger.mine or group.top in group.markers
            few = workers <= ledger.timing.few
            if certain or few or self._lot(id) * workers < self._readers(seen, asked, deaths):
                wanted.append(info)
        self._first_seen = unread
        return wanted

    def _readers(self, seen: float, asked: float, deaths: list[float]) -> float:
        """How many of the fleet's workers read a claim that was first seen then.

        Args:
            deaths: sorted. A claim that came after a death is not of the worker that died.
        """
        lease = self.ledger.timing.lease
        spans = (asked - seen) / (_OLD * lease)
        readers = 2.0 ** min(spans, _DOUBLINGS) if spans >= 1 else 0.0
        if (first := bisect_left(deaths, seen)) < len(deaths):
            readers = max(readers, _JUDGES * 2.0 ** min((asked - deaths[first]) / lease, _DOUBLINGS))
        return readers

    def _lot(self, id: str) -> float:
        """A number from 0 to 1, of this worker and this id: the lowest ones read it first."""
        digest = hashlib.blake2b(f"{self.ledger.session} {id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64

    def _note_mine(self, groups: dict[str, Group], asked: float) -> None:
        """Forget ids of our own whose claims have been gone for a lease: a create may land late."""
        mine = self.ledger.mine
        for id, last in list(mine.items()):
            if last is None or id in groups:
                mine[id] = asked
            elif asked - last >= self.ledger.timing.lease and not self.ledger.is_busy(id):
                del mine[id]
