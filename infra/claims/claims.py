"""The bucket protocol: how many workers share one bucket, crash, and lose nothing.

It needs one primitive, create-if-absent. Which worker has a request may be in doubt for a while: a lease
only saves work. The outcome never is: it is a create, which exactly one writer wins. See docs/design.md.

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
from infra.claims.kept_request import keep
from infra.claims.ledger import Ledger, fingerprint_in
from infra.claims.liveness import Watch
from infra.claims.sweep import Sweep, Wanted
from infra.stores.store import Info, Store
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import Failure, Frozen, ImageResult, Result

__all__ = ["Claim", "Claims", "Held", "Reason", "Release", "Timing"]

#: The outcome of B4 and B5. "misplaced": we created a claim under an id that answers another body.
Verdict = Literal["ours", "taken", "ended", "other body", "misplaced", "unclear"]

_MARGIN = 0.02  # seconds after a lease or a wait should have run out


class Claims:
    """The protocol as one worker session uses it. For one event loop.

    Every method may raise `StoreUnavailable`, and may then be called again. Threads, the clock and
    random numbers come from the caller, so a simulation can be repeated exactly.
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
        """
        Args:
            session: an id that no other start of any worker ever had.
            clock: monotonic seconds.
            stamp: the date and time for people, ISO 8601; the protocol does not read it.
            may_forget: asked before the claims of an ended request are deleted. While it returns False they
                stay, and each sweep asks again: another worker announces what a dead one did not.
        """
        self.session = session
        self.timing = timing
        self.may_forget = may_forget
        self._store = store
        self._seq = 0
        self._ledger = Ledger(store, session, rng, timing, may_forget)
        self._sweep = Sweep(self._ledger, Watch(timing, rng), clock, stamp)

    # Heartbeats ------------------------------------------------------------------------------

    async def beat(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the heartbeat, with facts for people and clients. Call it only while the work makes progress."""
        self._seq += 1
        body = json.dumps({**(facts or {}), "v": 1, "session": self.session, "seq": self._seq}).encode()
        await self._store.put(layout.worker_key(self.session), body)

    async def retire(self) -> None:
        """Delete the heartbeat; while something is held leave it to die, so that others look for that."""
        if not self._ledger.held:
            await self._store.delete(layout.worker_key(self.session))

    def holds(self, id: str) -> bool:
        return id in self._ledger.held

    # Taking ----------------------------------------------------------------------------------

    async def take(
        self,
        source: Info | None,
        body: bytes,
        *,
        id: str,
        plan: dict[str, Any] | None,
        batch: bool = False,
        express: bool = False,
        fingerprint: str = "",
    ) -> Held | None:
        """Claim a request. None when another worker has it or it has ended.

        Args:
            source: the request object, which is deleted once that is safe; None when a queue's message
                brought the body: the caller deletes the message once the result exists.
            fingerprint: of a body that is too large to be read; by default that of `body`.
        """
        fingerprint = fingerprint or layout.fingerprint(body)
        misplaced: list[str] = []  # ids where we created a claim and found another body's result
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
                    express=express,
                )
                verdict = await self._claim_first(claim)
                if verdict == "misplaced":
                    misplaced.append(target)
                if verdict in ("misplaced", "other body"):
                    continue
                if verdict == "ended" and not self.may_forget(target):
                    return None  # the request object is kept too: whoever lists it again asks again
                if verdict != "unclear":
                    # Only now: a claim or a result carries this body, so it cannot be lost any more.
                    await self._ledger.drop_request(source)  # B6
                    # After it: until then a misplaced claim may be all that carries the body.
                    for other in misplaced:
                        await self._ledger.drop_claim(other, 1)
                if verdict != "ours":
                    return None
                held = self._ledger.held[target] = Held(claim)
                return held
        return None

    async def _claim_first(self, claim: Claim) -> Verdict:
        """B4, then B5. In this order a claim that is created after the result always sees the result."""
        key = layout.claim_key(claim.id, 1)
        self._ledger.mine[claim.id] = None
        created = await self._store.create(key, claim.body())
        existing = claim if created else await self._ledger.claim(key)
        answered = await self._ledger.result_fingerprint(claim.id)
        if answered is not None and answers(answered, claim.fingerprint):
            if created and self.may_forget(claim.id):
                await self._ledger.drop_claim(claim.id, 1)
            return "ended"
        if answered is not None:
            return "misplaced" if created else "other body"
        if created:
            return "ours"
        if existing is None:
            return "unclear"  # it ended and was tidied between our two reads; the next listing shows how
        return "taken" if existing.fingerprint == claim.fingerprint else "other body"

    # Reading ---------------------------------------------------------------------------------

    async def result(self, id: str) -> Result | None:
        """The result, or None. Raises `ValueError` for one that cannot be read."""
        body = await self._ledger.result_body(id)
        return None if body is None else Result.model_validate_json(body)

    async def ended(self, id: str, fingerprint: str) -> str | None:
        """The id whose result answers this body: `id` or the body's own; None while there is none."""
        for target in _ids(id, fingerprint):
            answered = await self._ledger.result_fingerprint(target)
            if answered is not None and answers(answered, fingerprint):
                return target
        return None

    async def is_claimed(self, id: str) -> bool:
        """Whether any worker has a claim of this id."""
        return bool((await self._ledger.groups(layout.claims_prefix(id))).get(id))

    async def is_over(self, id: str) -> bool:
        """Whether the request has its result, perhaps a cancellation. If so, it is not held any more."""
        if await self._store.head(layout.result_key(id)) is None:
            return False
        held = self._ledger.held.get(id)
        if held is None:
            return True
        answered = await self._ledger.result_fingerprint(id)
        if answered is None or not answers(answered, held.claim.fingerprint):
            return False  # another body's result: `commit` puts ours under an id of its own
        held.result_id = id
        self._let_go(held)
        await self._ledger.tidy(id, answered)
        return True

    async def forget(self, id: str) -> None:
        """B9 for an ended request that `may_forget` kept: delete its claims."""
        answered = await self._ledger.result_fingerprint(id)
        if answered is not None and not self._ledger.is_busy(id) and id not in self._ledger.held:
            await self._ledger.tidy(id, answered)

    # Working ---------------------------------------------------------------------------------

    async def stored_image(self, held: Held, index: int, extension: str) -> ImageResult | None:
        """B7: adopt an image that an earlier attempt stored, or None."""
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
        """B7: create an image, or adopt the one that is there. Returns what *is* stored.

        An image of another plan (left by a request that was removed) stays; ours gets another key.
        """
        claim = held.claim
        facts = stored_image.facts(
            claim, body, seed=seed, width=width, height=height, content_type=content_type
        )
        for key in stored_image.keys(claim, index, extension):
            if await self._store.create(key, body, metadata=facts, content_type=content_type):
                info: Info | None = Info(key, len(body), "", 0.0, facts)
            else:
                info = await self._store.head(key)
            image = info and stored_image.adopted(info, index, claim)
            if image:
                held.images[index] = image
                return image
        raise StoreUnavailable(f"image {index} of {claim.id!r} cannot be stored: other images have its keys")

    async def commit(self, held: Held, result: Result) -> bool:
        """B8: create the result. B9: delete the claims. False when another result was first; it is over in either case.

        Raises:
            ValueError: the result names an image that this claim neither stored nor adopted.
        """
        claim = held.claim
        for image in result.images:
            if held.images.get(image.index) != image:
                raise ValueError(
                    f"image {image.index} of {claim.id!r} is not known to be stored; store it, then commit"
                )
        for target in _ids(claim.id, claim.fingerprint):
            request = await keep(self._store, target, result.request, claim.fingerprint, batch=claim.batch)
            body = result.model_copy(update={"id": target, "request": request}).to_json()
            held.sent.append(body)  # before the create: its answer may be lost
            ours = await self._store.create(layout.result_key(target), body, content_type=layout.COMMIT_TYPE)
            if not ours:
                winner = await self._ledger.result_body(target)
                ours = winner in held.sent  # created by an earlier call whose answer was lost
                if winner is None or not answers(fingerprint_in(winner), claim.fingerprint):
                    continue  # the id answers another body
            held.result_id = target
            self._let_go(held)  # first: if a delete below fails, a sweep tidies what nobody holds
            if not self.may_forget(target):
                return ours  # a sweep tidies up once it may
            # The claims last: until the result exists they are all that carries the request.
            if claim.epoch == 1:
                await self._ledger.drop_claim(claim.id, 1, has_status=held.has_status)
            else:
                await self._ledger.tidy(claim.id, claim.fingerprint)
            return ours
        raise StoreUnavailable(f"no id is free for the result of {claim.id!r}")

    async def release(self, held: Held, reason: Reason, why: Failure | None = None) -> None:
        """Give a request back: `drain` at once, uncounted; `retry` after a wait, counted as an attempt.

        Args:
            why: goes into the result if no attempt is left.
        """
        body = Release(reason=reason, failure=why).model_dump_json().encode()
        # The marker first: if it cannot be created, the claim stays held, and the caller can try again.
        await self._store.create(layout.released_key(held.claim.id, held.claim.epoch), body)
        self._let_go(held)

    async def sweep(
        self, limit: int | None = None, wanted: Wanted | None = None, *, express_limit: int = 0
    ) -> list[Held]:
        """S1 to S4: tidy what has ended; take over at most `limit` requests that are released or a dead worker's.

        Those of the express lane come first, and may be as many as `express_limit` if that is more. A claim
        that is not `wanted` stays for other workers.
        """
        return await self._sweep(limit, wanted, express_limit)

    def until_sweep(self) -> float:
        """Seconds to the next sweep: a random interval, or less when a lease or a wait runs out earlier."""
        return min(self._ledger.rng.uniform(*self.timing.sweep), self._sweep.soonest() + _MARGIN)

    def _let_go(self, held: Held) -> None:
        if self._ledger.held.get(held.claim.id) is held:
            del self._ledger.held[held.claim.id]


def _ids(id: str, fingerprint: str) -> list[str]:
    """Where a body's result may be: under the id, else under an id of its own."""
    return [id, layout.other_body_id(id, fingerprint)]
