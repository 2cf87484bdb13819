"""Is everything in place for requests to be drawn? One finding for each thing that is looked at.

Nothing is changed: a few short-lived objects are written and removed. What a look cannot tell, the
canary does (see `producer/canary.py`).
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from infra.queues.setup_check import Finding
from infra.stores.open import open_store
from infra.stores.probe import probe
from infra.stores.s3_location import S3Location
from producer.overview import heartbeats
from producer.request_state import ALIVE, MOST, first, read_result
from schemas.errors import DreamError
from schemas.layout import RESULTS, WORKERS, parse_result
from schemas.result import Result

if TYPE_CHECKING:
    from infra.queues.sqs import QueueFacts
    from infra.stores.store import Store

LONGEST = 11 * 3600.0  # seconds; a message can be renewed for twelve hours
TIMED = 20  # results whose timings are looked at
SKEW_SEEN, SKEW_HARMFUL = 5.0, 300.0  # seconds; S3 refuses at 900
SAID = "the message says what to do"
SPACE_LITTLE, SPACE_NONE = 5 << 30, 256 << 20  # bytes


async def examine(place: str, queues: Sequence[str], *, attempts: int = 3) -> AsyncIterator[Finding]:
    """Look at a store, its workers, and their queues.

    Args:
        attempts: how often the workers try a request (their --max-attempts).
    """
    slowest = None
    async with AsyncExitStack() as stack:
        store = None
        async for finding, opened in _opened(place, stack):
            store = opened
            yield finding
        if store is not None:
            for look in (promises, clock, space):
                if (seen := await _told(look(store), look.__name__)) is not None:
                    yield seen
            try:
                for finding in await _workers(store, place):
                    yield finding
                slowest = await _slowest(store)
            except DreamError as error:
                yield Finding("workers", "fail", str(error), SAID)
        for url in queues:
            name = f" of {url.rpartition('/')[2]}" if len(queues) > 1 else ""
            for finding in await _queue(url, place, attempts, slowest):
                yield Finding(finding.check + name, finding.status, finding.found, finding.fix)


async def _opened(place: str, stack: AsyncExitStack) -> AsyncIterator[tuple[Finding, Store | None]]:
    if "://" not in place and not Path(place).expanduser().is_dir():
        why = f"there is no directory {place!r}"
        yield (
            Finding("store", "fail", why, "give it with --store or DREAMDROP_STORE, or start a worker"),
            None,
        )
        return
    if S3Location.of(place) is not None:
        yield await _credentials(), None
    try:
        store = await stack.enter_async_context(open_store(place))
    except DreamError as error:
        yield Finding("store", "fail", str(error), "put that right first: the rest depends on it"), None
    else:
        yield Finding("store", "pass", f"{store.url} answers"), store


async def _credentials() -> Finding:
    from infra.aws import credentials

    source = await credentials()
    if source is None:
        fix = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a machine with a role"
        )
        return Finding("credentials", "fail", "the AWS libraries find none", fix)
    return Finding("credentials", "pass", f"found ({source})")


async def _told(work: Awaitable[Finding | None], check: str) -> Finding | None:
    try:
        return await work
    except DreamError as error:
        return Finding(check, "fail", str(error), SAID)


async def promises(store: Store) -> Finding:
    """Conditional writes, and the rest that the protocol needs."""
    verdict = await probe(store, racers=8, rounds=4)
    if not verdict.is_atomic:
        return Finding("promises", "warn", verdict.reason, "run one worker only, or use another store")
    note = "" if verdict.conditional_delete else "; deletes have no conditions, which costs a look each"
    return Finding("promises", "pass", f"writes create or refuse, reads are fresh{note}")


async def clock(store: Store) -> Finding:
    """The store's clock against ours, by an object's date."""
    key = f"{WORKERS}.probe-clock-{secrets.token_hex(6)}"
    begun = time.time()
    await store.create(key, b"")
    try:
        info = await store.head(key)
        ended = time.time()
    finally:
        await store.delete(key)
    if info is None:
        return Finding("clock", "fail", "an object is not there just after it was written", "see `promises`")
    apart = max(begun - 1 - info.modified, info.modified - ended, 0.0)  # S3's dates are whole seconds
    if apart < SKEW_SEEN:
        return Finding("clock", "pass", "this machine and the store agree")
    why = f"this machine and the store are {apart:,.0f} s apart; S3 refuses requests at 900 s"
    return Finding(
        "clock", "fail" if apart >= SKEW_HARMFUL else "warn", why, "set this machine's clock (NTP)"
    )


async def space(store: Store) -> Finding | None:
    """Free space, where the store is a directory."""
    parts = urlsplit(store.url)
    if parts.scheme != "file":
        return None
    usage = await asyncio.to_thread(shutil.disk_usage, unquote(parts.path))
    why = f"{usage.free / (1 << 30):,.1f} GiB free of {usage.total / (1 << 30):,.1f}"
    if usage.free < SPACE_NONE:
        return Finding("disk", "fail", why, "free some space: results cannot be written soon")
    return Finding("disk", "warn" if usage.free < SPACE_LITTLE else "pass", why)


async def _workers(store: Store, place: str) -> list[Finding]:
    """Who is alive, and what they serve."""
    said = await heartbeats(store)
    if not said:
        why = f"none has announced itself in the last {ALIVE:g} s"
        return [Finding("workers", "warn", why, f"start one: dreamdrop worker --store {place}")]
    states = sorted(str(one.get("state", "alive")) for one in said)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    alive = Finding("workers", "pass", counts)
    lists = [one["models"] for one in said if isinstance(one.get("models"), list)]
    served = {str(name) for names in lists for name in names}
    defaults = {str(one.get("default_model", "")) for one in said} - {""}
    unknown = sorted(default for default in defaults if default not in served)
    if unknown:
        why = f"the default model {', '.join(unknown)} is none that the workers know"
        return [
            alive,
            Finding("models", "fail", why, "start them with --model and --models that fit together"),
        ]
    if len(defaults) > 1:
        why = f"workers differ in their default model: {', '.join(sorted(defaults))}"
        return [
            alive,
            Finding("models", "warn", why, "a request without a model is drawn by either: start all alike"),
        ]
    names = ", ".join(sorted(served)[:8]) or "none announced"
    return [alive, Finding("models", "pass", f"{names}; by default {', '.join(defaults) or 'unknown'}")]


async def _slowest(store: Store) -> float | None:
    """Seconds that the slowest of the newest results took."""
    commits = {id: info async for info in first(store.list(RESULTS), MOST) if (id := parse_result(info.key))}
    ids = heapq.nlargest(TIMED, commits, key=lambda id: commits[id].modified)
    seconds = []
    for result in await asyncio.gather(*(read_result(store, id) for id in ids), return_exceptions=True):
        if isinstance(result, Result) and result.timings is not None:  # not what strangers put there
            seconds.append(result.timings.total)
    return max(seconds, default=None)


async def _queue(url: str, place: str, attempts: int, slowest: float | None) -> list[Finding]:
    """Whether a queue is reachable and set up for its work."""
    from infra.queues.setup import Account
    from infra.queues.sqs import Queue

    location = S3Location.of(place) or S3Location("")
    try:
        async with Queue(url, patience=10.0) as queue:
            facts = await queue.facts()
        wired = await asyncio.to_thread(
            lambda: Account().check(url, location.bucket, location.prefix, attempts=attempts)
        )
    except DreamError as error:
        return [Finding("queue", "fail", str(error), "put that right first")]
    there = Finding("queue", "pass", f"{facts.visible} waiting, {facts.in_flight} in flight")
    return [there, visibility(facts, slowest), *_eased(wired)]


def visibility(facts: QueueFacts, slowest: float | None) -> Finding:
    """How long a received message stays hidden, against how long requests take."""
    measured = (
        f"the slowest of the newest results took {slowest:,.1f} s"
        if slowest is not None
        else "none drawn yet"
    )
    if slowest is not None and slowest > LONGEST:
        why = f"{measured}; a message can be renewed for 12 hours only"
        return Finding("visibility", "fail", why, "ask for fewer images or steps in a request")
    if facts.visibility < 30:
        why = f"{facts.visibility:g} s: what receives without renewing sees a message again while it is drawn"
        return Finding("visibility", "warn", why, "set VisibilityTimeout to 60")
    return Finding("visibility", "pass", f"{measured}; workers hold a message for 60 s and renew it every 20")


def _eased(findings: list[Finding]) -> list[Finding]:
    """A bucket that announces nothing at all is a choice: then the queue is for messages sent to it."""
    silent = any(f.check == "notifications" and f.status == "fail" for f in findings)
    forbidden = any(f.check == "queue policy" and f.status == "fail" for f in findings)
    if not (silent and forbidden):
        return findings
    why = "the bucket announces nothing to this queue: dropped files are found by the slow sweep only"
    fix = "run `dreamdrop setup queue --apply`, or send requests to the queue (`dreamdrop submit --queue`)"
    rest = [f for f in findings if f.check not in ("notifications", "queue policy")]
    return [Finding("notifications", "warn", why, fix), *rest]
