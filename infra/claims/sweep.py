"""The sweep: requests of dead workers, and released ones, are taken over; ended ones are tidied.

One pass lists the heartbeats (S1) and the claims (S2), tidies what has ended (S3) and takes over what a
dead worker held or a live one gave back (S4). Which claims it reads: see `reading.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from infra.claims import kept_request
from infra.claims.claim import Claim, Held, Release, answers, given_up
from infra.claims.ledger import Group, Ledger
from infra.claims.liveness import Watch
from infra.claims.reading import Reading
from infra.gather import gather_bounded
from infra.stores.store import Info
from schemas import layout
from schemas.errors import StoreUnavailable

Wanted = Callable[[Claim], Awaitable[bool]]

log = logging.getLogger(__name__)

AT_ONCE = 8  # store calls in flight
TIDY_ONLY = 32  # ids that a pass looks at when it may take no more


@dataclass(frozen=True, slots=True)
class Candidate:
    """An id that may need a new owner, and why."""

    id: str
    group: Group
    release: Release | None = None
    ours: bool = False  # our own claim, whose create we got no answer to
    express: bool = False


@dataclass(slots=True)
class Sweep:
    """One session's sweeps."""

    ledger: Ledger
    watch: Watch
    clock: Callable[[], float]
    stamp: Callable[[], str]
    wanted: Wanted | None = None
    _statuses_at: float = -math.inf  # when `status/` was last listed, by our clock
    _reading: Reading = field(init=False)

    def __post_init__(self) -> None:
        self._reading = Reading(self.ledger)

    async def __call__(
        self, limit: int | None, wanted: Wanted | None = None, express_limit: int = 0
    ) -> list[Held]:
        ledger, self.wanted = self.ledger, wanted
        # Before the listing: each heartbeat that it shows was unchanged at least until now.
        asked = self.clock()
        # S1
        beats = {
            info.key.removeprefix(layout.WORKERS): info async for info in ledger.store.list(layout.WORKERS)
        }
        statuses = await self._statuses(asked)  # before the claims: whoever wrote a status had a claim
        groups = await ledger.groups()  # S2
        candidates = await self._candidates(groups, {s: info.etag for s, info in beats.items()}, asked)
        ledger.rng.shuffle(candidates)  # so that two sweepers seldom race for the same id
        express = [candidate for candidate in candidates if candidate.express]
        others = [candidate for candidate in candidates if not candidate.express]
        taken = await self._take(express, limit if limit is None else max(limit, express_limit))
        taken += await self._take(others, limit if limit is None else limit - len(taken))
        candidates = express + others
        # Also without room for more: what has ended must go, however busy this worker is.
        await gather_bounded(candidates[:TIDY_ONLY], AT_ONCE, self._tidy_only)
        await self._forget_workers(beats, asked)
        await self._forget_statuses([info for id, info in statuses.items() if id not in groups])
        ledger.held.update({held.claim.id: held for held in taken})
        return taken

    async def _take(self, candidates: list[Candidate], limit: int | None) -> list[Held]:
        """Settle candidates until so many are taken over; what is left stays in the list."""
        taken: list[Held] = []
        while candidates and (limit is None or len(taken) < limit):
            size = AT_ONCE if limit is None else min(AT_ONCE, limit - len(taken))
            now, candidates[:] = candidates[:size], candidates[size:]
            taken += [held for held in await asyncio.gather(*map(self._settle, now)) if held]
        return taken

    def soonest(self) -> float:
        """Seconds until a sweep would find more to do, if nothing changes."""
        return self.watch.soonest(self.clock(), but=self.ledger.session)

    async def _candidates(
        self, groups: dict[str, Group], beats: dict[str, str], asked: float
    ) -> list[Candidate]:
        """The ids whose newest claim has no live owner."""
        ledger = self.ledger
        tops = {id: group.claims[group.top] for id, group in groups.items() if group.claims}
        # After the listings were complete: a lease then begins too late, never too early.
        self.watch.observe(beats, self._owners(tops), self.clock())
        unread = self._reading.choose(groups, self.watch.dead(asked), asked, len(beats))
        await gather_bounded(unread, AT_ONCE, ledger.summary)
        released = [group.markers[group.top] for group in groups.values() if group.top in group.markers]
        await gather_bounded(released, AT_ONCE, ledger.release)
        seen = self.clock()
        self.watch.observe(beats, self._owners(tops), seen)  # again: some owners have no heartbeat
        listed = [info for g in groups.values() for info in [*g.claims.values(), *g.markers.values()]]
        ledger.forget_gone({(info.key, info.etag) for info in listed})
        self.watch.forget_markers({info.key for info in listed})
        judged = [await self._judge(id, group, asked, seen) for id, group in groups.items()]
        return [candidate for candidate in judged if candidate is not None]

    def _owners(self, tops: dict[str, Info]) -> set[str]:
        """The sessions whose claims are listed, as far as they were read."""
        return {summary.session for info in tops.values() if (summary := self.ledger.known(info))}

    async def _judge(self, id: str, group: Group, asked: float, seen: float) -> Candidate | None:
        ledger = self.ledger
        if ledger.is_busy(id):
            return None
        if not group.claims:
            return Candidate(id, group)  # a marker that came late
        held = ledger.held.get(id)
        if held is not None:
            if group.top > held.claim.epoch:
                held.taken_over = True
                del ledger.held[id]  # another worker's from now on, to be judged like any other
            return None
        summary = ledger.known(group.claims[group.top])
        if summary is None:
            return None
        marker = group.markers.get(group.top)
        if marker is not None:
            release = await ledger.release(marker)
            ripe = self.watch.is_ripe(marker.key, summary.attempt, release, seen)
            return Candidate(id, group, release, express=summary.express) if ripe else None
        if summary.session == ledger.session:
            return Candidate(id, group, ours=True, express=summary.express)
        dead = self.watch.is_dead(summary.session, asked)
        return Candidate(id, group, express=summary.express) if dead else None

    async def _tidy_only(self, candidate: Candidate) -> None:
        await self._settle(candidate, may_take=False)

    async def _settle(self, candidate: Candidate, may_take: bool = True) -> Held | None:
        """Tidy an id, or take it over. What cannot be done now is found again by the next pass."""
        if self.ledger.is_busy(candidate.id) or candidate.id in self.ledger.held:
            return None
        with self.ledger.busy(candidate.id):
            try:
                return await self._settle_one(candidate, may_take)
            except StoreUnavailable as error:
                log.info("the sweep left a request for later", extra={"id": candidate.id, "why": str(error)})
            except Exception as error:  # one request's unforeseen error must not stop the others
                # The error's text may quote the request, so only its type is logged.
                facts = {"id": candidate.id, "error": type(error).__name__}
                log.error("the sweep failed at a request with an unforeseen error", extra=facts)
        return None

    async def _settle_one(self, candidate: Candidate, may_take: bool) -> Held | None:
        ledger, id, group = self.ledger, candidate.id, candidate.group
        # S3, before any takeover: an ended request is never drawn again.
        answered = await ledger.result_fingerprint(id)
        if not group.claims:
            if answered is not None:
                await ledger.tidy(id, answered, group)
            return None
        summary = await ledger.summary(group.claims[group.top])
        if summary is None:
            return None
        if answered is not None and answers(answered, summary.fingerprint):
            await ledger.tidy(id, answered, group)
            return None
        if not may_take:
            return None
        # The whole claim only now: most candidates are tidied, and a claim carries its request.
        last = await ledger.claim(group.claims[group.top].key)
        if last is None or last.fingerprint != summary.fingerprint:
            return None
        if answered is not None:
            return await self._move(last, candidate)
        if candidate.ours:
            return Held(last)
        if self.wanted is not None and not await self.wanted(last):
            return None
        return await self._claim_next(last, candidate.release, last.id, last.epoch + 1)

    async def _move(self, last: Claim, candidate: Candidate) -> Held | None:
        """The id already answers another body: continue under the id of this one."""
        target = layout.other_body_id(last.id, last.fingerprint)
        if self.ledger.is_busy(target) or target in self.ledger.held:
            return None
        with self.ledger.busy(target):
            # Work on our own claim never began, so it does not count as an attempt.
            release = Release(reason="drain") if candidate.ours else candidate.release
            held = await self._claim_next(last, release, target, 1)
            # The old claims go only when a claim or a result under the new id carries the body.
            moved = await self.ledger.claim(layout.claim_key(target, 1))
            safe = moved is not None and moved.fingerprint == last.fingerprint
            if safe or await self.ledger.result_fingerprint(target) == last.fingerprint:
                await self.ledger.tidy(last.id, last.fingerprint, candidate.group)
            return held

    async def _claim_next(self, last: Claim, release: Release | None, target: str, epoch: int) -> Held | None:
        """S4: create the next epoch's claim with request and plan unchanged. Then B5: look for the result."""
        ledger = self.ledger
        drained = release is not None and release.reason == "drain"
        attempt = last.attempt if drained else last.attempt + 1
        if attempt > ledger.timing.max_attempts:
            await self._give_up(last.model_copy(update={"id": target}), release)
            return None
        claim = last.model_copy(
            update={
                "id": target,
                "session": ledger.session,
                "nonce": ledger.nonce(),
                "epoch": epoch,
                "attempt": attempt,
                "solo": last.solo or release is None,
            }
        )
        ledger.mine[target] = None
        if not await ledger.store.create(layout.claim_key(target, epoch), claim.body()):
            return None
        # After the create, as in B5: the last owner may have committed meanwhile.
        answered = await ledger.result_fingerprint(target)
        if answered is not None and answers(answered, claim.fingerprint):
            await ledger.tidy(target, answered)
            return None
        return Held(claim)

    async def _give_up(self, last: Claim, release: Release | None) -> None:
        result = given_up(last, release, session=self.ledger.session, finished_at=self.stamp())
        store, print_ = self.ledger.store, last.fingerprint
        kept = await kept_request.keep(store, last.id, last.frozen, print_, batch=last.batch)
        result = result.model_copy(update={"request": kept})
        await store.create(layout.result_key(last.id), result.to_json(), content_type=layout.COMMIT_TYPE)
        # Read back: another result may have been first, and it says which claims have ended.
        answered = await self.ledger.result_fingerprint(last.id)
        if answered is not None:
            await self.ledger.tidy(last.id, answered)

    async def _statuses(self, now: float) -> dict[str, Info]:
        """The status objects by id, now and then: few are ever left behind, and a listing costs a call."""
        if now - self._statuses_at < self.ledger.timing.forget:
            return {}
        self._statuses_at = now
        listing = self.ledger.store.list(layout.STATUS)
        return {layout.parse_status(info.key): info async for info in listing}

    async def _forget_statuses(self, left: list[Info]) -> None:
        """Delete the status objects of requests that nobody has: a worker died between its last two writes."""
        for info in left:
            with contextlib.suppress(StoreUnavailable):
                await self.ledger.store.delete(info.key, etag=info.etag)

    async def _forget_workers(self, beats: dict[str, Info], asked: float) -> None:
        """Delete the heartbeats of workers that have been dead for long."""
        ledger = self.ledger
        for session, info in beats.items():
            old = self.watch.unchanged(session, asked) >= ledger.timing.forget
            if old and session != ledger.session:
                with contextlib.suppress(StoreUnavailable):
                    await ledger.store.delete(info.key, etag=info.etag)
