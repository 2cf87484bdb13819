"""From a dropped file to a claimed request: read, check, plan, claim.

What can never succeed is claimed, too, with the reason for a plan.
"""

from __future__ import annotations

import asyncio
import logging
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
from schemas.result import Note

if TYPE_CHECKING:
    from infra.claims.claims import Claims, Held
    from infra.stores.store import Info, Store

T = TypeVar("T")
log = logging.getLogger(__name__)

SETTLED = 2.0  # seconds that a broken file must stay unchanged before it is answered: it may be half copied
_FORGOTTEN = 600.0  # seconds until a broken file's first sight is forgotten
_LONG = 1 << 20  # bytes of a body that is read in a thread: the heartbeats go on meanwhile


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a look at a request."""

    id: str
    fingerprint: str = ""  # of its body; "" when the object was gone
    held: Held | None = None  # when it is ours to work on
    settling: bool = False  # it is broken, and may still be half copied: look again


@dataclass
class Intake:
    """Takes requests for one worker."""

    store: Store
    claims: Claims
    cards: Cards
    default_model: str
    limits: Limits
    clock: Callable[[], float]
    rng: random.Random
    _broken: dict[str, tuple[str, float]] = field(default_factory=dict)  # key to (etag, first seen)

    async def take(self, info: Info) -> Taken:
        """Claim the request of a listed object, to draw or to refuse it, or learn that there is nothing to do.

        Raises:
            StoreUnavailable: it will be found again.
        """
        batch = layout.is_batch(info.key)
        limit = self.limits.max_batch_bytes if batch else self.limits.max_body_bytes
        id = layout.request_id(info.key)
        try:
            stored = await self.store.get(info.key, max_bytes=limit)
        except NotFound:
            return Taken(id)  # somebody else was faster
        except TooLarge as error:
            name = layout.oversize_fingerprint(info.key, info.size, info.etag)
            return await self._refuse(info, error, b"", id, fingerprint=name)
        return await self.take_body(stored.body, id=id, source=stored.info, batch=batch)

    async def take_body(
        self, body: bytes, *, id: str, source: Info | None = None, batch: bool = False
    ) -> Taken:
        """Claim a request whose body is at hand. Raises `StoreUnavailable`.

        Args:
            id: unless the manifest names its own.
            source: the object that held the body; None when a message did.
        """
        try:
            if source is None and len(body) > self.limits.max_body_bytes:
                raise TooLarge("the message", len(body), self.limits.max_body_bytes)
            if batch:
                await _aside(len(body), split_rows, id, body, self.limits)
                planned, id_ = None, id
            else:
                manifest = await _aside(len(body), parse_manifest, body, self.limits)
                id_ = manifest.id or id
                if has_expired(manifest):
                    return await self._refuse(source, _expired(manifest), body, id_)
                planned = self.plan(manifest).document()
        except Rejected as error:
            if error.code == "invalid_json" and source is not None and not self._is_settled(source):
                return Taken(id, settling=True)
            return await self._refuse(source, error, body, chosen_id(body) or id)
        if source is not None:
            self._broken.pop(source.key, None)
        held = await self.claims.take(source, body, id=id_, plan=planned, batch=batch)
        return Taken(id_, layout.fingerprint(body), held)

    def plan(self, manifest: Manifest) -> Plan:
        """Resolve a manifest's names and defaults. Raises `Rejected` for names that nobody knows."""
        card = self.cards.get(manifest.model or self.default_model)
        notes: list[Note] = []
        choice = samplers.resolve(manifest.scheduler or card.scheduler)
        if manifest.scheduler and manifest.scheduler != choice.name:
            log.debug("scheduler by another name", extra={"given": manifest.scheduler, "name": choice.name})
        return plan(
            manifest,
            model=card.name,
            revision=card.revision,
            native_size=(card.native_width, card.native_height),
            scheduler=choice.name,
            lot=self.rng.getrandbits(32),
            notes=tuple(notes),
        )

    def _is_settled(self, info: Info) -> bool:
        """Whether a file that does not parse has stayed the same for long enough to be judged."""
        now = self.clock()
        etag, since = self._broken.get(info.key, ("", now))
        if etag != info.etag:
            while self._broken and now - next(iter(self._broken.values()))[1] > _FORGOTTEN:
                del self._broken[next(iter(self._broken))]  # somebody else answered it
            self._broken[info.key] = (info.etag, now)
            return False
        if now - since < SETTLED:
            return False
        del self._broken[info.key]
        return True

    async def _refuse(
        self, info: Info | None, error: Rejected, body: bytes, id: str, *, fingerprint: str = ""
    ) -> Taken:
        """Claim what can never succeed, so that one worker answers it, under one name; its plan says why."""
        plan = Refusal.of(error).document()
        held = await self.claims.take(info, body, id=id, plan=plan, fingerprint=fingerprint)
        return Taken(id, fingerprint or layout.fingerprint(body), held)


async def _aside(size: int, read: Callable[..., T], *words: Any) -> T:
    """Call `read`, for a body of many bytes in a thread."""
    return await asyncio.to_thread(read, *words) if size > _LONG else read(*words)


def _expired(manifest: Manifest) -> Rejected:
    text = f"expires_at {manifest.expires_at:%Y-%m-%dT%H:%M:%S%z} had passed before the work began"
    return Rejected("expired", text, field="expires_at")
