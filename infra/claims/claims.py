"""The bucket protocol: how many workers share one bucket, and crash, and lose nothing.

Everything stands on one primitive, create-if-absent. Whose turn it is may be doubtful for a
while (a lease saves work, no more); what the outcome is never is, because every outcome is a
create that exactly one writer wins.

Taking a request:
    B4  create claims/<id>/000001, which carries the request
    B5  then look for the result: a late duplicate stops here, before any work
    B6  delete the request object, in the version that was read
Working:
    B7  create each image, or adopt the one that is there
    B8  create the result: the commit
    B9  delete the claims
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

from infra.claims import stored_image
from infra.claims.claim import Claim, Held, Reason, Release, Timing, answers
from infra.claims.ledger import Ledger, fingerprint_in
from infra.claims.liveness import Watch
from infra.claims.sweep import Sweep
from infra.stores.store import Info, Store
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import Failure, Frozen, ImageResult, Result

__all__ = ["Claim", "Claims", "Held", "Reason", "Release", "Timing"]

#: What B4 and B5 found. "limbo": we claimed an id that answers another body already.
Verdict = Literal["mine", "taken", "over", "other body", "limbo", "unclear"]


_AFTER = 0.02  # seconds; so that a lease that was to run out has done so


class Claims:
    """One worker session's hand in the protocol; for one event loop.

    Every method may raise `StoreUnavailable`, and may then be called again. Neither threads nor
    a clock nor chance of its own: all three are passed in, so that a simulation repeats exactly.
    """

    def __init__(
        self,
        store: Store,
        *,
        session: str,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = Timing(),  # frozen
        stamp: Callable[[], str] = str,
        may_forget: Callable[[str], bool] = lambda _id: True,
    ) -> None:
        """Join in.

        Args:
            session: an id that no other start of any worker ever had.
            clock: monotonic seconds.
            stamp: the date and time for people, ISO 8601; nothing else reads it.
            may_forget: asked before the last trace of an ended request but its result is removed.
                While it says no, the trace stays, and whoever sweeps asks again: so an
                announcement of the result outlives the worker that should have made it.
        """
        self.session = session
        self.timing = timing
        self.may_forget = may_forget
        self._store = store
        self._seq = 0
        self._ledger = Ledger(store, session, rng, timing, may_forget)
        self._sweep = Sweep(self._ledger, Watch(timing, rng), clock, stamp)

    # Being alive ---------------------------------------------------------------------------

    async def beat(self, facts: Mapping[str, Any] | None = None) -> None:
        """Show life. The caller beats only while its work makes progress.

        Args:
            facts: for people and clients, such as the models served; the protocol reads none of it.
        """
        self._seq += 1
        body = json.dumps({**(facts or {}), "v": 1, "session": self.session, "seq": self._seq}).encode()
        await self._store.put(layout.worker_key(self.session), body)

    async def retire(self) -> None:
        """Leave in order; what is still held waits for a lease."""
        await self._store.delete(layout.worker_key(self.session))

    def holds(self, id: str) -> bool:
        return id in self._ledger.held

    # Taking --------------------------------------------------------------------------------

    async def take(
        self,
        source: Info | None,
        body: bytes,
        *,
        id: str,
        plan: dict[str, Any] | None,
        batch: bool = False,
        fingerprint: str = "",
    ) -> Held | None:
        """Claim a request, or learn that somebody has it or that it is over.

        Args:
            source: the request object; None when a queue's message brought the body, which the
                caller deletes once the result exists.
            fingerprint: of a body that is too large to be read; by default `body` has it.

        Returns:
            None when there is nothing to do; the request object is tidied away if it is safe.
        """
        fingerprint = fingerprint or layout.fingerprint(body)
        limbo: list[str] = []  # ids where our claim met another body's result
        for target in _ids(id, fingerprint):
            if self._ledger.is_busy(target):
                return None
            with self._ledger.busy(target):
                claim = Claim(
                    id=target,
                    fingerprint=fingerprint,
                    frozen=Frozen.of(body),
                    plan=plan,
                    session=self.session,
                    nonce=self._ledger.nonce(),
                    epoch=1,
                    attempt=1,
                    batch=batch,
                    source=source.key if source else None,
                )
                verdict = await self._claim_first(claim)
                if verdict == "limbo":
                    limbo.append(target)
                if verdict in ("limbo", "other body"):
                    continue
                if verdict == "over" and not self.may_forget(target):
                    return None
                if verdict != "unclear":
                    await self._ledger.drop_request(source)  # B6
                    for there in limbo:
                        await self._ledger.drop_claim(there, 1)
                if verdict != "mine":
                    return None
                held = self._ledger.held[target] = Held(claim)
                return held
        return None

    async def _claim_first(self, claim: Claim) -> Verdict:
        """B4 and B5, in this order: a claim made after the result was, sees the result."""
        key = layout.claim_key(claim.id, 1)
        made = await self._store.create(key, claim.body())
        there = claim if made else await self._ledger.claim(key)
        found = await self._ledger.answered(claim.id)
        if found is not None and answers(found, claim.fingerprint):
            if made and self.may_forget(claim.id):
                await self._ledger.drop_claim(claim.id, 1)
            return "over"
        if found is not None:
            return "limbo" if made else "other body"
        if made:
            return "mine"
        if there is None:
            return "unclear"  # ended and tidied between our two looks: the next listing tells
        return "taken" if there.fingerprint == claim.fingerprint else "other body"

    # Looking -------------------------------------------------------------------------------

    async def result(self, id: str) -> Result | None:
        """The result, or None; `ValueError` when somebody wrote one that cannot be read."""
        body = await self._ledger.result_body(id)
        return None if body is None else Result.model_validate_json(body)

    async def ended(self, id: str, fingerprint: str) -> str | None:
        """The id whose result answers this body, which may be one of the body's own; None while there is none."""
        for target in _ids(id, fingerprint):
            found = await self._ledger.answered(target)
            if found is not None and answers(found, fingerprint):
                return target
        return None

    async def is_claimed(self, id: str) -> bool:
        """Whether anybody has a claim of this id."""
        return bool((await self._ledger.groups(layout.claims_prefix(id))).get(id))

    async def is_over(self, id: str) -> bool:
        """Whether the request has its result, perhaps a cancellation; then it is not held any more."""
        if await self._store.head(layout.result_key(id)) is None:
            return False
        held = self._ledger.held.get(id)
        if held is None:
            return True
        found = await self._ledger.answered(id)
        if found is None or not answers(found, held.claim.fingerprint):
            return False  # another body's: ours goes under an id of its own, by `commit`
        held.over = id
        self._let_go(held)
        await self._ledger.tidy(id, found)
        return True

    async def forget(self, id: str) -> None:
        """B9 of an ended request that `may_forget` kept: remove its claims."""
        found = await self._ledger.answered(id)
        if found is not None and not self._ledger.is_busy(id) and id not in self._ledger.held:
            await self._ledger.tidy(id, found)

    # Working -------------------------------------------------------------------------------

    async def stored_image(self, held: Held, index: int, extension: str) -> ImageResult | None:
        """B7 adopt an image that an earlier attempt stored, or None."""
        for key in stored_image.keys(held.claim, index, extension):
            info = await self._store.head(key)
            if info is None:
                return None
            image = stored_image.adopted(info, index, held.claim)
            if image is not None:
                held.images[index] = image
                return image
        return None

    async def store_image(
        self,
        held: Held,
        index: int,
        extension: str,
        body: bytes,
        *,
        seed: int,
        width: int,
        height: int,
        content_type: str,
    ) -> ImageResult:
        """B7 create an image, or adopt the one that is there; the answer tells what *is* stored.

        An image of another plan (a leftover of a removed request) is passed by.
        """
        claim = held.claim
        facts = stored_image.facts(
            claim, body, seed=seed, width=width, height=height, content_type=content_type
        )
        for key in stored_image.keys(held.claim, index, extension):
            if await self._store.create(key, body, metadata=facts, content_type=content_type):
                info: Info | None = Info(key, len(body), "", 0.0, facts)
            else:
                info = await self._store.head(key)
            image = info and stored_image.adopted(info, index, held.claim)
            if image:
                held.images[index] = image
                return image
        raise StoreUnavailable(
            f"image {index} of {held.claim.id!r} cannot be stored: its keys hold other images"
        )

    async def commit(self, held: Held, result: Result) -> bool:
        """B8 create the result; B9 delete the claims.

        Returns:
            False when somebody was first; then the request is over all the same.

        Raises:
            ValueError: the result names an image that was not stored or adopted by this claim.
        """
        claim = held.claim
        for image in result.images:
            if held.images.get(image.index) != image:
                raise ValueError(
                    f"image {image.index} of {claim.id!r} is not known to be stored; store it, then commit"
                )
        for target in _ids(claim.id, claim.fingerprint):
            body = result.model_copy(update={"id": target}).to_json()
            held.sent.append(body)
            made = await self._store.create(layout.result_key(target), body)
            if not made:
                winner = await self._ledger.result_body(target)
                made = winner in held.sent  # an earlier call's, whose answer was lost
                if winner is None or not answers(fingerprint_in(winner), claim.fingerprint):
                    continue  # the id answers another body
            held.over = target
            self._let_go(held)
            if not self.may_forget(target):
                return made  # a sweep tidies up
            if claim.epoch == 1:
                await self._ledger.drop_claim(claim.id, 1, told=held.told)
            else:
                await self._ledger.tidy(claim.id, claim.fingerprint)
            return made
        raise StoreUnavailable(f"no free id to answer {claim.id!r} under")

    async def release(self, held: Held, reason: Reason, why: Failure | None = None) -> None:
        """Give the request back: `drain` at once and uncounted; `retry` after a while, as an attempt.

        Args:
            why: told in the result if no attempt is left.
        """
        body = Release(reason=reason, failure=why).model_dump_json().encode()
        await self._store.create(layout.released_key(held.claim.id, held.claim.epoch), body)
        self._let_go(held)

    async def sweep(self, limit: int | None = None) -> list[Held]:
        """S1 to S4: tidy what is over, take over what is dead or released, at most `limit` of it."""
        return await self._sweep(limit)

    def until_sweep(self) -> float:
        """Seconds to the next sweep: drawn at random, or sooner when a lease or a wait runs out before."""
        return min(self._ledger.rng.uniform(*self.timing.sweep), self._sweep.soonest() + _AFTER)

    def _let_go(self, held: Held) -> None:
        if self._ledger.held.get(held.claim.id) is held:
            del self._ledger.held[held.claim.id]


def _ids(id: str, fingerprint: str) -> list[str]:
    """Where a body's result may stand: under its id, else under one of its own."""
    return [id, layout.other_body_id(id, fingerprint)]
