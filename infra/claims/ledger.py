"""What one session knows of the claims, and the reads and deletes that it shares out.

Deleting is where a request could be forgotten, so all of it is here. A claim is deleted only
when a result *for its own body* exists; a request object only when a claim or a result carries
the same body.
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
class Note:
    """The few facts of a claim that every sweep needs, without its request."""

    session: str
    fingerprint: str
    attempt: int


@dataclass(slots=True)
class Group:
    """The objects under `claims/` of one id, as listed."""

    claims: dict[int, Info] = field(default_factory=dict)  # by epoch
    markers: dict[int, Info] = field(default_factory=dict)

    @property
    def top(self) -> int:
        return max(self.claims, default=0)


@dataclass(slots=True)
class Ledger:
    """The session's own claims, and a memory of the others' (they never change)."""

    store: Store
    session: str
    rng: random.Random
    timing: Timing
    may_forget: Callable[[str], bool] = lambda _id: True
    held: dict[str, Held] = field(default_factory=dict)  # by id
    _busy: set[str] = field(default_factory=set)  # ids in the middle of a take or a takeover
    _notes: dict[tuple[str, str], Note | None] = field(default_factory=dict)  # by (key, etag)
    _releases: dict[tuple[str, str], Release] = field(default_factory=dict)

    def nonce(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def is_busy(self, id: str) -> bool:
        return id in self._busy

    @contextlib.contextmanager
    def busy(self, id: str) -> Iterator[None]:
        self._busy.add(id)
        try:
            yield
        finally:
            self._busy.discard(id)

    async def groups(self, prefix: str = layout.CLAIMS) -> dict[str, Group]:
        """One LIST, sorted by id; the rows of a batch are ids of their own."""
        found: dict[str, Group] = {}
        async for info in self.store.list(prefix):
            parsed = layout.parse_claim(info.key)
            if parsed is not None:
                id, epoch, is_marker = parsed
                group = found.setdefault(id, Group())
                (group.markers if is_marker else group.claims)[epoch] = info
        return found

    async def claim(self, key: str) -> Claim | None:
        """Read a claim; None when it is gone, or not one of ours to understand."""
        with contextlib.suppress(NotFound):
            return _claim_in((await self.store.get(key)).body, key)
        return None

    async def note(self, info: Info) -> Note | None:
        """What a listed claim says, read once; None when it is gone, or none."""
        at = (info.key, info.etag)
        if at not in self._notes:
            try:
                claim = _claim_in((await self.store.get(info.key)).body, info.key)
            except NotFound:
                return None  # not for ever: a try of its maker may arrive late, and make the very same again
            self._notes[at] = Note(claim.session, claim.fingerprint, claim.attempt) if claim else None
        return self._notes[at]

    async def release(self, info: Info) -> Release:
        """What a listed marker says, read once."""
        at = (info.key, info.etag)
        if at not in self._releases:
            try:
                self._releases[at] = Release.model_validate_json((await self.store.get(info.key)).body)
            except (NotFound, ValidationError):
                return Release(reason="retry")
        return self._releases[at]

    def forget_gone(self, present: set[tuple[str, str]]) -> None:
        """Drop what is remembered of objects that are not listed any more."""
        for memory in (self._notes, self._releases):
            for gone in memory.keys() - present:
                del memory[gone]

    async def result_body(self, id: str) -> bytes | None:
        try:
            return (await self.store.get(layout.result_key(id))).body
        except NotFound:
            return None

    async def answered(self, id: str) -> str | None:
        """The fingerprint that the result of this id carries; None when there is no result."""
        body = await self.result_body(id)
        return None if body is None else fingerprint_in(body)

    async def drop_request(self, source: Info | None) -> None:
        """Delete a request object, in the version that was read. Failing is harmless: it is found again."""
        if source is None:
            return
        with contextlib.suppress(StoreUnavailable):
            await self.store.delete(source.key, etag=source.etag)

    async def drop_claim(self, id: str, epoch: int, *, told: bool = False) -> None:
        """Delete a claim of our own. Failing is harmless: our next sweep finds it, held by nobody.

        Args:
            told: whether there may be a status object, which must not outlive the claim.
        """
        with contextlib.suppress(StoreUnavailable):
            if told:
                await self.store.delete(layout.status_key(id))
            await self.store.delete(layout.claim_key(id, epoch))

    async def tidy(self, id: str, fingerprint: str, group: Group | None = None) -> None:
        """B9 delete the claims of an ended request: lower epochs first, each after its marker.

        Before them the status object that a dead worker may have left: nobody would look for it later.

        Claims of another body under the same id stay. Failing midway is harmless: the result
        exists, so whoever sweeps next goes on here.
        """
        if not self.may_forget(id):
            return
        with contextlib.suppress(StoreUnavailable):
            if group is None:
                group = (await self.groups(layout.claims_prefix(id))).get(id, Group())
            epochs = sorted(group.claims.keys() | group.markers.keys())
            if epochs:
                await self.store.delete(layout.status_key(id))
            for epoch in epochs:
                info = group.claims.get(epoch)
                note = await self.note(info) if info else None
                if note is not None and not answers(fingerprint, note.fingerprint):
                    continue
                if epoch in group.markers:
                    await self.store.delete(group.markers[epoch].key, etag=group.markers[epoch].etag)
                if info is not None:
                    await self.store.delete(info.key, etag=info.etag)


def _claim_in(body: bytes, key: str) -> Claim | None:
    try:
        return Claim.model_validate_json(body)
    except ValidationError:
        log.warning("not a claim, left alone", extra={"key": key})
        return None


def fingerprint_in(result: bytes) -> str:
    """Which body a result answers; "" (every one) when it cannot be read."""
    try:
        return Result.model_validate_json(result).fingerprint
    except ValidationError:
        log.warning("a result that cannot be read ends its request")
        return ""
