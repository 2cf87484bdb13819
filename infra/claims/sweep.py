"""The sweep: how nothing stays with a dead worker.

One pass lists the heartbeats (S1) and the claims (S2), tidies what is over (S3) and takes over
what a dead worker had or a live one gave back (S4). It reads each claim once in its life.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from infra.claims.claim import Claim, Held, Release, answers, given_up
from infra.claims.ledger import Group, Ledger
from infra.claims.liveness import Watch
from infra.gather import gather_bounded
from infra.stores.store import Info
from schemas import layout
from schemas.errors import StoreUnavailable

log = logging.getLogger(__name__)

ABREAST = 8  # store calls in flight at a time
TIDY_ONLY = 32  # ids looked at in a pass that may take no more


@dataclass(frozen=True, slots=True)
class Candidate:
    """An id that needs somebody, and why."""

    id: str
    group: Group
    release: Release | None = None
    ours: bool = False  # our own claim, whose making we never heard of


@dataclass(slots=True)
class Sweep:
    """One session's sweeps."""

    ledger: Ledger
    watch: Watch
    clock: Callable[[], float]
    stamp: Callable[[], str]

    async def __call__(self, limit: int | None) -> list[Held]:
        asked = self.clock()
        beats = {
            info.key.removeprefix(layout.WORKERS): info
            async for info in self.ledger.store.list(layout.WORKERS)  # S1
        }
        groups = await self.ledger.groups()  # S2
        found = await self._candidates(groups, {s: info.etag for s, info in beats.items()}, asked)
        self.ledger.rng.shuffle(found)  # so that two sweepers seldom race for the same one
        taken: list[Held] = []
        while found and (limit is None or len(taken) < limit):
            size = ABREAST if limit is None else min(ABREAST, limit - len(taken))
            now, found = found[:size], found[size:]
            taken += [held for held in await asyncio.gather(*map(self._settle, now)) if held]
        await gather_bounded(found[:TIDY_ONLY], ABREAST, self._tidy_only)
        await self._forget_workers(beats, asked)
        self.ledger.held.update({held.claim.id: held for held in taken})
        return taken

    def soonest(self) -> float:
        """Seconds until a sweep would find something more to do, if nothing changes."""
        return self.watch.soonest(self.clock(), but=self.ledger.session)

    async def _candidates(
        self, groups: dict[str, Group], beats: dict[str, str], asked: float
    ) -> list[Candidate]:
        """The ids whose newest claim has no live owner."""
        tops = [group.claims[group.top] for group in groups.values() if group.claims]
        await gather_bounded(tops, ABREAST, self.ledger.note)  # read what is new; the rest is remembered
        seen = self.clock()  # not before the listing was complete
        notes = {info.key: await self.ledger.note(info) for info in tops}
        given_back = [group.markers[group.top] for group in groups.values() if group.top in group.markers]
        await gather_bounded(given_back, ABREAST, self.ledger.release)
        self.watch.observe(beats, {note.session for note in notes.values() if note}, seen)
        listed = [info for g in groups.values() for info in [*g.claims.values(), *g.markers.values()]]
        self.ledger.forget_gone({(info.key, info.etag) for info in listed})
        self.watch.forget_markers({info.key for info in listed})
        found = []
        for id, group in groups.items():
            candidate = await self._judge(id, group, asked, seen)
            if candidate is not None:
                found.append(candidate)
        return found

    async def _judge(self, id: str, group: Group, asked: float, seen: float) -> Candidate | None:
        ledger = self.ledger
        if ledger.is_busy(id):
            return None
        if not group.claims:
            return Candidate(id, group)  # a marker that came late
        note = await ledger.note(group.claims[group.top])
        if note is None:
            return None
        held = ledger.held.get(id)
        if held is not None:
            if group.top > held.claim.epoch:
                held.lost = True
                del ledger.held[id]  # from now on it is somebody else's, to be judged like any other
            return None
        marker = group.markers.get(group.top)
        if marker is not None:
            release = await ledger.release(marker)
            ripe = self.watch.is_ripe(marker.key, note.attempt, release, seen)
            return Candidate(id, group, release) if ripe else None
        if note.session == ledger.session:
            return Candidate(id, group, ours=True)
        return Candidate(id, group) if self.watch.is_dead(note.session, asked) else None

    async def _tidy_only(self, candidate: Candidate) -> None:
        await self._settle(candidate, may_take=False)

    async def _settle(self, candidate: Candidate, may_take: bool = True) -> Held | None:
        """Tidy an id, or take it over; what cannot be done now is found again by the next pass."""
        if self.ledger.is_busy(candidate.id) or candidate.id in self.ledger.held:
            return None
        with self.ledger.busy(candidate.id):
            try:
                return await self._settle_one(candidate, may_take)
            except StoreUnavailable as error:
                log.info("sweep left one for later", extra={"id": candidate.id, "why": str(error)})
            except Exception as error:  # what nobody foresaw in one is no other's problem
                # The error's text may quote the request, so only its kind is told.
                facts = {"id": candidate.id, "error": type(error).__name__}
                log.error("sweep failed with one in an unforeseen way", extra=facts)
        return None

    async def _settle_one(self, candidate: Candidate, may_take: bool) -> Held | None:
        ledger, id, group = self.ledger, candidate.id, candidate.group
        found = await ledger.answered(id)  # S3
        if not group.claims:
            if found is not None:
                await ledger.tidy(id, found, group)
            return None
        note = await ledger.note(group.claims[group.top])
        if note is None:
            return None
        if found is not None and answers(found, note.fingerprint):
            await ledger.tidy(id, found, group)
            return None
        if not may_take:
            return None
        last = await ledger.claim(group.claims[group.top].key)
        if last is None or last.fingerprint != note.fingerprint:
            return None
        if found is not None:
            return await self._move(last, candidate)
        return (
            Held(last)
            if candidate.ours
            else await self._succeed(last, candidate.release, last.id, last.epoch + 1)
        )

    async def _move(self, last: Claim, candidate: Candidate) -> Held | None:
        """The id already answers another body: go on under the id of this one."""
        target = layout.other_body_id(last.id, last.fingerprint)
        if self.ledger.is_busy(target) or target in self.ledger.held:
            return None
        with self.ledger.busy(target):
            release = Release(reason="drain") if candidate.ours else candidate.release  # ours was never begun
            held = await self._succeed(last, release, target, 1)
            there = await self.ledger.claim(layout.claim_key(target, 1))
            safe = there is not None and there.fingerprint == last.fingerprint
            if safe or await self.ledger.answered(target) == last.fingerprint:
                await self.ledger.tidy(last.id, last.fingerprint, candidate.group)
            return held

    async def _succeed(self, last: Claim, release: Release | None, target: str, epoch: int) -> Held | None:
        """S4 claim the next epoch with request and plan unchanged, then B5 look for the result."""
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
        if not await ledger.store.create(layout.claim_key(target, epoch), claim.body()):
            return None
        found = await ledger.answered(target)
        if found is not None and answers(found, claim.fingerprint):
            await ledger.tidy(target, found)
            return None
        return Held(claim)

    async def _give_up(self, last: Claim, release: Release | None) -> None:
        result = given_up(last, release, session=self.ledger.session, finished_at=self.stamp())
        await self.ledger.store.create(layout.result_key(last.id), result.to_json())
        found = await self.ledger.answered(last.id)
        if found is not None:
            await self.ledger.tidy(last.id, found)

    async def _forget_workers(self, beats: dict[str, Info], asked: float) -> None:
        """Remove heartbeats of workers long dead."""
        ledger = self.ledger
        for session, info in beats.items():
            old = self.watch.unchanged(session, asked) >= ledger.timing.forget
            if old and session != ledger.session:
                with contextlib.suppress(StoreUnavailable):
                    await ledger.store.delete(info.key, etag=info.etag)
