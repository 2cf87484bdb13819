"""From the bytes of a request to its claim: read, check, plan, claim.

A request that can never succeed is claimed too; its claim holds the reason in place of a plan.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from consumer.models.cards import Cards
from schemas import layout, samplers
from schemas.batch import split_rows
from schemas.errors import NotFound, Rejected, TooLarge
from schemas.limits import Limits
from schemas.manifest import Manifest, chosen_id, has_expired, parse_manifest
from schemas.plan import Plan, Refusal, plan

if TYPE_CHECKING:
    from infra.claims.claims import Claims, Held
    from infra.stores.store import Info, Store

T = TypeVar("T")

SETTLED = 2.0  # seconds that a file must stay the same before it counts as broken, not half copied
_FORGOTTEN = 600.0  # seconds until we forget that we saw a broken file
_LONG = 1 << 20  # bytes; a longer body is parsed in a thread, so that heartbeats go on


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """What came of trying to claim a request."""

    id: str
    fingerprint: str = ""  # of its body; "" when the object was gone
    held: Held | None = None  # the claim, when it is ours to work on
    settling: bool = False  # the file is broken, perhaps half copied: try again


@dataclass
class RequestClaimer:
    """Reads requests and claims them, for one worker."""

    store: Store
    claims: Claims
    cards: Cards
    default_model: str
    limits: Limits
    clock: Callable[[], float]
    rng: random.Random
    _broken: dict[str, tuple[str, float]] = field(default_factory=dict)  # key to (etag, first seen)

    async def claim_object(self, info: Info) -> ClaimOutcome:
        """Claim the request in a listed object.

        Raises:
            StoreUnavailable: try again; the next listing shows the object again.
        """
        batch = layout.is_batch(info.key)
        limit = self.limits.max_batch_bytes if batch else self.limits.max_body_bytes
        id = layout.request_id(info.key)
        try:
            stored = await self.store.get(info.key, max_bytes=limit)
        except NotFound:
            return ClaimOutcome(id)  # another worker was faster
        except TooLarge as error:
            fingerprint = layout.oversize_fingerprint(info.key, info.size, info.etag)
            return await self._refuse(info, error, b"", id, fingerprint=fingerprint)
        return await self.claim_body(stored.body, id=id, source=stored.info, batch=batch)

    async def claim_body(
        self, body: bytes, *, id: str, source: Info | None = None, batch: bool = False
    ) -> ClaimOutcome:
        """Claim a request whose body was read already. Raises `StoreUnavailable`.

        Args:
            id: used unless the manifest names its own.
            source: the object that held the body; None when a queue's message did.
        """
        try:
            if source is None and len(body) > self.limits.max_body_bytes:
                raise TooLarge("the message", len(body), self.limits.max_body_bytes)
            if batch:
                await _parse(len(body), split_rows, id, body, self.limits)
                plan_document, request_id = None, id
            else:
                manifest = await _parse(len(body), parse_manifest, body, self.limits)
                request_id = manifest.id or id
                if has_expired(manifest):
                    return await self._refuse(source, _expired(manifest), body, request_id)
                plan_document = self.plan(manifest).document()
        except Rejected as error:
            if error.code == "invalid_json" and source is not None and not self._is_settled(source):
                return ClaimOutcome(id, settling=True)
            return await self._refuse(source, error, body, chosen_id(body) or id)
        if source is not None:
            self._broken.pop(source.key, None)
        held = await self.claims.take(source, body, id=request_id, plan=plan_document, batch=batch)
        return ClaimOutcome(request_id, layout.fingerprint(body), held)

    def plan(self, manifest: Manifest) -> Plan:
        """Resolve a manifest's names and defaults. Raises `Rejected` for an unknown model or scheduler."""
        card = self.cards.get(manifest.model or self.default_model)
        return plan(
            manifest,
            model=card.name,
            revision=card.revision,
            native_size=(card.native_width, card.native_height),
            scheduler=samplers.resolve(manifest.scheduler or card.scheduler).name,
            random_seed=self.rng.getrandbits(32),
        )

    def _is_settled(self, info: Info) -> bool:
        """Whether a file that does not parse has stayed the same for long enough to be refused."""
        now = self.clock()
        etag, since = self._broken.get(info.key, ("", now))
        if etag != info.etag:
            while self._broken and now - next(iter(self._broken.values()))[1] > _FORGOTTEN:
                del self._broken[next(iter(self._broken))]  # another worker answered it
            self._broken[info.key] = (info.etag, now)
            return False
        if now - since < SETTLED:
            return False
        del self._broken[info.key]
        return True

    async def _refuse(
        self, info: Info | None, error: Rejected, body: bytes, id: str, *, fingerprint: str = ""
    ) -> ClaimOutcome:
        """Claim a request that can never succeed, so that only one worker answers it."""
        refusal = Refusal.of(error).document()
        held = await self.claims.take(info, body, id=id, plan=refusal, fingerprint=fingerprint)
        return ClaimOutcome(id, fingerprint or layout.fingerprint(body), held)


async def _parse(size: int, parse: Callable[..., T], *arguments: Any) -> T:
    """Call `parse`; for a long body in a thread."""
    return await asyncio.to_thread(parse, *arguments) if size > _LONG else parse(*arguments)


def _expired(manifest: Manifest) -> Rejected:
    text = f"expires_at {manifest.expires_at:%Y-%m-%dT%H:%M:%S%z} had passed before the work began"
    return Rejected("expired", text, field="expires_at")
