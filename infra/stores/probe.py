"""Tests whether a store keeps the guarantees that the protocol needs, with a few short-lived objects.

Level A: any number of workers may share it. Level B: two creators of one key were both told that they won,
so only one worker may use it. A store that ignores conditions, or does not show what was just written, is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import DreamError, NotFound, StoreUnavailable, Unsupported
from schemas.layout import WORKERS

if TYPE_CHECKING:
    from infra.stores.store import Store

log = logging.getLogger(__name__)

RACERS = 16  # concurrent creators of one key
ROUNDS = 8  # keys that they race for


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a probe."""

    level: str  # "A": any number of workers; "B": one worker only
    reason: str
    conditional_delete: bool  # whether a delete with a stale etag leaves the object alone

    @property
    def is_atomic(self) -> bool:
        return self.level == "A"


async def probe(store: Store, *, racers: int = RACERS, rounds: int = ROUNDS, name: str = "") -> Verdict:
    """Test the store's guarantees with objects `workers/.probe-<name>-...`, and delete them again.

    About `racers * rounds` small writes; well under a second on a nearby store.

    Raises:
        Unsupported: the protocol cannot run on this store; the message says why.
        StoreUnavailable: it does not answer, or denies access.
    """
    try:
        return await _probe(store, racers, rounds, name)
    except (Unsupported, StoreUnavailable) as error:
        look = getattr(store, "versions", None)  # what `open_store` made has it
        if look is None or await look() == "none":
            raise
        raise type(error)(
            f"{error}. The bucket is versioned, and some servers (Ceph) fail at conditional writes there: "
            "use a bucket without versioning"
        ) from error


async def _probe(store: Store, racers: int, rounds: int, name: str) -> Verdict:
    stem = f"{WORKERS}.probe-{name or secrets.token_hex(8)}-"
    keys = [f"{stem}{number:03d}" for number in range(rounds + 1)]
    try:
        await _expect_write_once(store, keys[0])
        winners = [await _race(store, key, racers) for key in keys[1:]]
        await _expect_listed(store, stem, keys)
        conditional = await _has_conditional_delete(store, keys[0])
    finally:
        await _clean_up(store, keys)
    undecided = sum(1 for count in winners if count != 1)
    if undecided:
        reason = (
            f"in {undecided} of {rounds} races for one key the store did not tell exactly one creator that "
            "it won: its creates are not atomic, so only one worker may use it"
        )
        return Verdict("B", reason, conditional)
    return Verdict("A", f"each of {rounds} races for one key had exactly one winner", conditional)


async def _expect_write_once(store: Store, key: str) -> None:
    """Create the same key twice: the first object must stay, and be readable at once."""
    metadata = {"probe": "first"}
    if not await store.create(key, b"first", metadata=metadata):
        raise Unsupported(f"{store.url} says that the new key {key!r} exists already: its reads are stale")
    created_again = await store.create(key, b"second")
    try:
        stored = await store.get(key)
    except NotFound as error:
        raise Unsupported(f"{store.url} does not show an object just after it was written") from error
    if created_again or stored.body == b"second":
        raise Unsupported(
            f"{store.url} overwrote an object although the write said If-None-Match: * (create only if "
            "absent). Two workers could take one request there. Use a store with conditional writes "
            "(AWS S3, Ceph, MinIO, R2, ...), or a directory"
        )
    if stored.body != b"first":
        raise Unsupported(f"{store.url} returned other bytes than were written to it")
    info = await store.head(key)
    if info is None or dict(info.metadata) != metadata:
        raise Unsupported(f"{store.url} does not keep the metadata of objects (x-amz-meta-...)")


async def _race(store: Store, key: str, racers: int) -> int:
    """How many concurrent creators of a key were told that they won; 0 when the object is none of theirs."""
    answers = await asyncio.gather(*(store.create(key, b"%d" % n) for n in range(racers)))
    winners = [b"%d" % n for n, won in enumerate(answers) if won]
    stored = await store.get(key)
    return len(winners) if stored.body in winners else 0


async def _expect_listed(store: Store, stem: str, keys: list[str]) -> None:
    listed = [info.key async for info in store.list(stem)]
    missing = sorted(set(keys) - set(listed))
    if missing:
        raise Unsupported(
            f"{store.url} does not list an object just after it was written ({missing[0]!r}): requests "
            "would be overlooked. Check its settings for eventual consistency"
        )
    if listed != sorted(listed):
        raise Unsupported(f"{store.url} does not list keys in ascending order of their bytes")


async def _has_conditional_delete(store: Store, key: str) -> bool:
    await store.delete(key, etag="0" * 32)
    return await store.head(key) is not None


async def _clean_up(store: Store, keys: list[str]) -> None:
    for key in keys:
        try:
            await store.delete(key)
        except DreamError as error:  # the verdict matters more than an object left behind
            log.info("a probe object was not deleted", extra={"key": key, "reason": str(error)})
