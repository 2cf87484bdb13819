"""What one session knows of the claims, and the reads and deletes that taking and sweeping share.

A wrong delete could lose a request, so every delete of the protocol is in this file. A claim is deleted
only when a result *for its own body* exists; a request object only when a claim or a result carries the
same body.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from infra.claims.claim import Claim, Held, Release, Timing, answers
from infra.stores.store import Info, Store
from schemas import layout
from schemas.errors import NotFound, StoreUnavailable
from schemas.result import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimSummary:
    """The facts of a claim that every sweep needs, without its request."""

    session: str
    fingerprint: str
    attempt: int
    express: bool


@dataclass(slots=True)
class Group:
    """The objects under `claims/` of one id, as listed."""

    claims: dict[int, Info] = field(default_factory=dict)  # by epoch
    markers: dict[int, Info] = field(default_factory=dict)  # release markers, by epoch

    @property
    def top(self) -> int:
        """The highest epoch; 0 when there is no claim."""
        return max(self.claims, default=0)


@dataclass(slots=True)
class Ledger:
    """The session's own claims, and a cache of the others', which never change."""

    store: Store
    session: str
    rng: random.Random
    timing: Timing
    may_forget: Callable[[str], bool] = lambda _id: True
    held: dict[str, Held] = field(default_factory=dict)  # by id
    #: Ids under which this session may have created a claim; None, or when a sweep last found it so, by our clock.
    mine: dict[str, float | None] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)  # ids that are being taken or taken over
    _summaries: dict[tuple[str, str], ClaimSummary | None] = field(default_factory=dict)  # by (key, etag)
    _releases: dict[tuple[str, str], Release] = field(default_factory=dict)  # by (key, etag)

    def nonce(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def is_busy(self, id: str) -> bool:
        return id in self._busy

    @contextlib.contextmanager
    def busy(self, id: str) -> Iterator[None]:
        """Keep this session's other tasks away from an id."""
        self._busy.add(id)
        try:
            yield
        finally:
            self._busy.discard(id)

    async def groups(self, prefix: str = layout.CLAIMS) -> dict[str, Group]:
        """The claims by id, from one LIST; a batch's rows have ids of their own."""
        groups: dict[str, Group] = {}
        async for info in self.store.list(prefix):
            parsed = layout.parse_claim(info.key)
            if parsed is not None:
                id, epoch, is_marker = parsed
                group = groups.setdefault(id, Group())
                (group.markers if is_marker else group.claims)[epoch] = info
        return groups

    async def claim(self, key: str) -> Claim | None:
        """Read a claim. None when it is gone or cannot be read."""
        with contextlib.suppress(NotFound):
            return _claim_in((await self.store.get(key)).body, key)
        return None

    async def summary(self, info: Info) -> ClaimSummary | None:
        """The summary of a listed claim, read once. None when it is gone or cannot be read."""
        version = (info.key, info.etag)
        if version not in self._summaries:
            try:
                claim = _claim_in((await self.store.get(info.key)).body, info.key)
            except NotFound:
                return None  # not cached: a late try of its creator may create the very same object again
            self._summaries[version] = (
                ClaimSummary(claim.session, claim.fingerprint, claim.attempt, claim.in_express_lane)
                if claim
                else None
            )
        return self._summaries[version]

    def known(self, info: Info) -> ClaimSummary | None:
        """The summary of a listed claim that was read before; None when it was not."""
        return self._summaries.get((info.key, info.etag))

    def is_read(self, info: Info) -> bool:
        return (info.key, info.etag) in self._summaries

    async def release(self, info: Info) -> Release:
        """The content of a listed release marker, read once."""
        version = (info.key, info.etag)
        if version not in self._releases:
            try:
                self._releases[version] = Release.model_validate_json((await self.store.get(info.key)).body)
            except (NotFound, ValidationError):
                return Release(reason="retry")
        return self._releases[version]

    def forget_gone(self, listed: set[tuple[str, str]]) -> None:
        """Drop from the caches what is not listed any more. `listed`: (key, etag)."""
        for cached in (self._summaries, self._releases):
            for gone in cached.keys() - listed:
                del cached[gone]

    async def result_body(self, id: str) -> bytes | None:
        try:
            return (await self.store.get(layout.result_key(id))).body
        except NotFound:
            return None

    async def result_fingerprint(self, id: str) -> str | None:
        """The fingerprint in the result of this id; None when there is no result."""
        body = await self.result_body(id)
        return None if body is None else fingerprint_in(body)

    async def drop_request(self, source: Info | None) -> None:
        """Delete a request object, in the version that was read. If that fails it is listed again."""
        if source is None:
            return
        with contextlib.suppress(StoreUnavailable):
            await self.store.delete(source.key, etag=source.etag)

    async def drop_claim(self, id: str, epoch: int, *, has_status: bool = False) -> None:
        """Delete a claim of our own. If that fails, our next sweep finds it, held by nobody.

        Args:
            has_status: there may be a status object.
        """
        with contextlib.suppress(StoreUnavailable):
            if has_status:  # before the claim: nobody looks for the status of an id without a claim
                await self.store.delete(layout.status_key(id))
            await self.store.delete(layout.claim_key(id, epoch))

    async def tidy(self, id: str, fingerprint: str, group: Group | None = None) -> None:
        """B9: delete the claims of an ended request. Claims of another body under the same id stay.

        A failure midway is harmless: the result exists, so the next sweep continues here.
        """
        if not self.may_forget(id):
            return
        with contextlib.suppress(StoreUnavailable):
            if group is None:
                group = (await self.groups(layout.claims_prefix(id))).get(id, Group())
            epochs = sorted(group.claims.keys() | group.markers.keys())
            if epochs:
                # The status first, which a dead worker may have left: without a claim nobody would find it.
                await self.store.delete(layout.status_key(id))
            # Lower epochs first: while a higher one is there, a slow sweeper cannot create it again.
            for epoch in epochs:
                info = group.claims.get(epoch)
                summary = await self.summary(info) if info else None
                if summary is not None and not answers(fingerprint, summary.fingerprint):
                    continue
                # A marker before its claim: alone it would look like one that came late.
                if epoch in group.markers:
                    await self.store.delete(group.markers[epoch].key, etag=group.markers[epoch].etag)
                if info is not None:
                    await self.store.delete(info.key, etag=info.etag)


def _claim_in(body: bytes, key: str) -> Claim | None:
    try:
        return Claim.model_validate_json(body)
    except ValidationError:
        log.warning("an object under claims/ is not a claim; it is left alone", extra={"key": key})
        return None


def fingerprint_in(result: bytes) -> str:
    """The fingerprint of the body that a result answers; "" (any body) when the result cannot be read."""
    try:
        return Result.model_validate_json(result).fingerprint
    except ValidationError:
        log.warning("a result cannot be read; its request counts as ended")
        return ""
