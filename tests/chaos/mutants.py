"""The protocol with one rule broken, each: what the proof must notice, or it proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.claims import stored_image
from infra.claims.claim import Claim, Held, Release
from infra.claims.claims import Claims
from infra.claims.ledger import Ledger
from infra.claims.liveness import Watch
from infra.claims.sweep import Sweep
from infra.stores.store import Info
from schemas import layout
from schemas.result import ImageResult, Result
from tests.chaos.world import Door


class _Overwriting(Door):
    """A store whose `create` replaces what is there, for keys with a certain end."""

    ending = ""

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        if not key.endswith(self.ending):
            return await super().create(key, body, metadata=metadata)
        store = self.world.store
        await self._call(f"put {key}", lambda: _write(store, key, body, metadata or {}), changes=True)
        return True


async def _write(store: Any, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
    await store.delete(key)
    await store.create(key, body, metadata=metadata)


class _OverwritingResults(_Overwriting):
    ending = "result.json"


class _OverwritingImages(_Overwriting):
    ending = ".png"


class ResultIsPut(Claims):
    """Invariant 1: the result is put, not created: the last writer wins."""

    def __init__(self, store: Door, **rest: Any) -> None:
        super().__init__(_OverwritingResults(store.world, store.session), **rest)


class ImageIsPut(Claims):
    """Invariant 1: an image is put, not created."""

    def __init__(self, store: Door, **rest: Any) -> None:
        super().__init__(_OverwritingImages(store.world, store.session), **rest)


class OwnHashIsKept(Claims):
    """Invariant 2: on meeting another's image, the own image's hash goes into the result."""

    async def store_image(
        self, held: Held, index: int, extension: str, body: bytes, **facts: Any
    ) -> ImageResult:
        await super().store_image(held, index, extension, body, **facts)
        key = layout.image_key(held.claim.id, index, extension)
        info = Info(key, len(body), "", 0.0, stored_image.facts(held.claim, body, **facts))
        image = stored_image.adopted(info, index, held.claim)
        assert image is not None
        held.images[index] = image
        return image


class ResultBeforeImages(Claims):
    """Invariant 2: the result is created first, its images afterwards."""

    async def store_image(
        self, held: Held, index: int, extension: str, body: bytes, **facts: Any
    ) -> ImageResult:
        key = layout.image_key(held.claim.id, index, extension)
        info = Info(key, len(body), "", 0.0, stored_image.facts(held.claim, body, **facts))
        image = stored_image.adopted(info, index, held.claim)
        assert image is not None
        held.images[index] = image
        self._later = [*getattr(self, "_later", []), (held, index, extension, body, facts)]
        return image

    async def commit(self, held: Held, result: Result) -> bool:
        done = await super().commit(held, result)
        for _, index, extension, body, facts in getattr(self, "_later", []):
            await super().store_image(held, index, extension, body, **facts)
        return done


class RequestGoesFirst(Claims):
    """Invariant 3: the request object is deleted before the claim exists."""

    async def take(self, source: Info, body: bytes, **rest: Any) -> Held | None:
        await self._ledger.drop_request(source)
        return await super().take(source, body, **rest)


class ClaimsGoFirst(Claims):
    """Invariant 3: the claims are deleted before the result exists."""

    async def commit(self, held: Held, result: Result) -> bool:
        await self._ledger.tidy(held.claim.id, held.claim.fingerprint)
        return await super().commit(held, result)


class NewerRequestGoes(Claims):
    """Invariant 3: the request object is deleted in whatever version it has by then."""

    async def take(self, source: Info, body: bytes, **rest: Any) -> Held | None:
        return await super().take(Info(source.key, source.size, None, 0.0), body, **rest)  # type: ignore[arg-type]


class OtherBodiesGo(Claims):
    """Invariant 3: claims are tidied without asking which body they carry."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._ledger = self._sweep.ledger = _Careless(
            self._ledger.store, self._ledger.session, self._ledger.rng, self._ledger.timing
        )


class _Careless(Ledger):
    async def result_fingerprint(self, id: str) -> str | None:
        fingerprint = await super().result_fingerprint(id)
        return None if fingerprint is None else ""


class LooksFirst(Claims):
    """Invariant 4: the result is looked for before the claim only."""

    async def _claim_first(self, claim: Claim) -> Any:
        ended = await self._ledger.result_fingerprint(claim.id) is not None
        if not ended and await self._store.create(layout.claim_key(claim.id, 1), claim.body()):
            return "ours"
        return await super()._claim_first(claim)


class TakeoverDoesNotLook(Claims):
    """Invariant 4: the result is not looked for after a takeover."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._sweep = _Hasty(self._ledger, self._sweep.watch, self._sweep.clock, self._sweep.stamp)


class _Hasty(Sweep):
    async def _claim_next(self, last: Claim, release: Release | None, target: str, epoch: int) -> Held | None:
        claim = last.model_copy(
            update={
                "id": target,
                "epoch": epoch,
                "attempt": last.attempt + 1,
                "session": self.ledger.session,
                "nonce": self.ledger.nonce(),
            }
        )
        if claim.attempt > self.ledger.timing.max_attempts:
            return await super()._claim_next(last, release, target, epoch)
        made = await self.ledger.store.create(layout.claim_key(target, epoch), claim.body())
        return Held(claim) if made else None


class PlansAnew(TakeoverDoesNotLook):
    """Invariant 5: a takeover draws new seeds."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        Claims.__init__(self, *args, **rest)
        self._sweep = _Replanning(self._ledger, self._sweep.watch, self._sweep.clock, self._sweep.stamp)


class _Replanning(Sweep):
    async def _claim_next(self, last: Claim, release: Release | None, target: str, epoch: int) -> Held | None:
        fresh = last.model_copy(
            update={"plan": {**(last.plan or {}), "lot": self.ledger.rng.getrandbits(32)}}
        )
        return await super()._claim_next(fresh, release, target, epoch)


class NeverSweeps(Claims):
    """Invariant 6: what a dead worker had stays with it."""

    async def sweep(self, limit: int | None = None, **rest: Any) -> list[Held]:
        return []


class NobodyDies(Claims):
    """Invariant 6: a missing heartbeat counts as life."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        watch = self._sweep.watch
        self._sweep.watch = _Hopeful(watch.timing, watch.rng)


class _Hopeful(Watch):
    def is_dead(self, session: str, asked: float) -> bool:
        return super().is_dead(session, asked) and self._beats[session][0] is not None


class NeverCounts(Claims):
    """Invariant 6: attempts are not counted, so a poisonous request kills workers for ever."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._sweep = _Forgiving(self._ledger, self._sweep.watch, self._sweep.clock, self._sweep.stamp)


class _Forgiving(Sweep):
    async def _claim_next(self, last: Claim, release: Release | None, target: str, epoch: int) -> Held | None:
        return await super()._claim_next(last.model_copy(update={"attempt": 1}), release, target, epoch)


class ForgetsItsOwn(Claims):
    """Invariant 6: a claim that was made though its answer was lost is worked on by nobody."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._sweep = _Absent(self._ledger, self._sweep.watch, self._sweep.clock, self._sweep.stamp)


class _Absent(Sweep):
    async def _settle_one(self, candidate: Any, may_take: bool) -> Held | None:
        return None if candidate.ours else await super()._settle_one(candidate, may_take)


class KeepsWhatIsLost(Claims):
    """Invariant 6: a worker that was taken over still counts itself as the owner."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._sweep = _Clinging(self._ledger, self._sweep.watch, self._sweep.clock, self._sweep.stamp)


class _Clinging(Sweep):
    async def _judge(self, id: str, *rest: Any) -> Any:
        held = self.ledger.held.get(id)
        candidate = await super()._judge(id, *rest)
        if held is not None and held.taken_over:
            self.ledger.held[id] = held
        return candidate


class RemembersWhatIsGone(Claims):
    """Invariant 6: a claim that was gone when it was to be read counts as none for ever.

    A late try makes the very same object again; too rare for a few random histories.
    """

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        known = self._ledger
        self._ledger = self._sweep.ledger = _Stubborn(known.store, known.session, known.rng, known.timing)


class _Stubborn(Ledger):
    async def summary(self, info: Info) -> Any:
        return self._summaries.setdefault((info.key, info.etag), await super().summary(info))


class OneIdOneBody(Claims):
    """Invariant 3: a commit that meets another body's result believes itself answered.

    Too rare a race for random histories, so it has a story of its own.
    """

    async def commit(self, held: Held, result: Result) -> bool:
        if await self._store.create(layout.result_key(held.claim.id), result.to_json()):
            return await super().commit(held, result)
        self._let_go(held)
        await self._ledger.drop_claim(held.claim.id, held.claim.epoch)
        return False


MUTANTS: dict[str, type[Claims]] = {
    made.__name__: made
    for made in (
        ResultIsPut,
        ImageIsPut,
        OwnHashIsKept,
        ResultBeforeImages,
        RequestGoesFirst,
        ClaimsGoFirst,
        NewerRequestGoes,
        OtherBodiesGo,
        LooksFirst,
        TakeoverDoesNotLook,
        PlansAnew,
        NeverSweeps,
        NobodyDies,
        NeverCounts,
        ForgetsItsOwn,
    )
}
