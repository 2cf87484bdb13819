"""From one item of a queue's message to a claim: which object it names, and what to do when it is not ours."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from consumer.intake.claiming import ClaimOutcome
from infra.stores.keys import key_of_bucket
from infra.stores.s3_location import S3Location, key_in_store
from infra.stores.store import InvalidKey
from schemas import layout
from schemas.events import Created, Direct, Ignored, Reference, Unknown

if TYPE_CHECKING:
    from consumer.intake.claiming import RequestClaimer
    from infra.claims.claims import Claims
    from infra.queues.sqs import Message
    from infra.stores.store import Info, Store
    from schemas.events import Item

log = logging.getLogger(__name__)

SETTLES = 3.0  # seconds until a broken object is read again
_NOT_OURS = 5.0  # seconds, times the receives so far, until a message that we cannot use is shown again
_FOR_ITS_OWNER = 1.0  # the same, for a message that another store's worker can use
_LOOKS_FOR_OWNER = 8  # receives of it, before it would be moved to the dead-letter queue
_OWN_FOLDERS = (layout.CLAIMS, layout.RESULTS, layout.STATUS, layout.UPLOADS, layout.WORKERS)


class Postponed(Exception):
    """We cannot answer this message now: let it be shown again after some seconds."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


class ItemClaimer:
    """Claims what messages ask for, for one worker."""

    def __init__(self, store: Store, claimer: RequestClaimer, claims: Claims) -> None:
        self.dropped: Counter[str] = Counter()  # messages and records that ask for nothing, by reason
        self._store = store
        self._claimer = claimer
        self._claims = claims
        self._location = S3Location.of(store.url)

    async def claim(self, item: Item, message: Message, number: int, *, express: bool) -> ClaimOutcome | None:
        """Claim the request of an item; None when the item asks for nothing. Raises `Postponed`.

        Args:
            number: of the item in the message, from 0.
            express: the message came by the express queue.
        """
        match item:
            case Ignored(reason=reason):
                self._drop(reason, message)
                return None
            case Direct(body=body):
                name = f"queue/{message.id}" + (f"-{number}" if number else "")
                return await self._claimer.claim_body(body, id=layout.safe_id(name), express=express)
            case Created(bucket=bucket, keys=keys):
                if self._location is None or bucket != self._location.bucket:
                    raise self._unusable(
                        message, f"the event is about bucket {bucket!r}, not about {self._store.url}"
                    )
                ours = [self._location.inside(key) for key in keys]
                if not any(key is not None and layout.is_request(key) for key in ours):
                    self._leave_to_its_owner(keys, message)
                return await self._claim_object(ours, message, express)
            case Reference(key=key):
                inside = key_in_store(self._location, key)
                if inside is None or not layout.is_request(inside):
                    raise self._unusable(
                        message,
                        f"the reference does not name a .json or .jsonl under requests/ in {self._store.url}",
                    )
                return await self._claim_object([inside], message, express)
            case Unknown(reason=reason):
                raise self._unusable(message, reason)

    async def _claim_object(
        self, keys: list[str | None], message: Message, express: bool
    ) -> ClaimOutcome | None:
        """Claim the request object that a message names; `keys` are the ways to read its name."""
        requests = [key_of_bucket(key) for key in keys if key is not None and layout.is_request(key)]
        if not requests:
            self._drop("not a request", message)
            return None
        info = await self._first_existing(requests, message)
        if info is not None:
            outcome = await self._claimer.claim_object(info, express=express)
            if outcome.settling:
                raise Postponed("the object may be half copied", SETTLES)
            return outcome
        for key in requests:  # the object is gone: claimed, ended, or removed by its owner
            id = layout.request_id(key)
            if await self._claims.is_claimed(id):
                return ClaimOutcome(id)
            if await self._store.head(layout.result_key(id)) is not None:
                self._drop("over", message)
                return None
        self._drop("vanished", message)
        return None

    async def _first_existing(self, keys: list[str], message: Message) -> Info | None:
        """The object under the first of these keys that has one. Raises `Postponed` when none can be a key here."""
        invalid: list[InvalidKey] = []
        for key in keys:
            try:
                info = await self._store.head(key)
            except InvalidKey as error:
                invalid.append(error)
                continue
            if info is not None:
                return info
        if len(invalid) == len(keys):  # it may be there: this store cannot look
            raise self._unusable(message, str(invalid[0]))
        return None

    def _leave_to_its_owner(self, keys: Sequence[str], message: Message) -> None:
        """Raise `Postponed` when the object may be a request of another store in our bucket.

        Only a few times: then nobody seems to serve that store from this queue, and its own listing finds the object.
        """
        assert self._location is not None
        for key in keys:
            own = (self._location.inside(key) or "").startswith(_OWN_FOLDERS)
            prefix = layout.store_of_request(key)
            if prefix is None or own or message.receives > _LOOKS_FOR_OWNER:
                continue
            facts = {"message_id": message.id, "store": f"s3://{self._location.bucket}/{prefix}"}
            log.info(
                "a message is about another store in this bucket; it is left for its worker", extra=facts
            )
            raise Postponed("it is about another store", _FOR_ITS_OWNER * message.receives)

    def _drop(self, reason: str, message: Message) -> None:
        self.dropped[reason] += 1
        log.info("a message asks for nothing", extra={"message_id": message.id, "why": reason})

    def _unusable(self, message: Message, why: str) -> Postponed:
        facts = {"message_id": message.id, "why": why, "receives": message.receives}
        log.warning("a message cannot be used; it is left for the dead-letter queue", extra=facts)
        return Postponed(why, min(600.0, _NOT_OURS * message.receives))
