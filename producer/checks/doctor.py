"""Checks that everything is in place for requests to be drawn. Each check gives a finding.

Nothing is changed: a few short-lived objects are written and removed. What these checks cannot tell, the
canary does (see `producer/checks/canary.py`).
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

from infra.models import published
from infra.queues.setup_check import Finding
from infra.stores.directory import safe_paths
from infra.stores.directory.store import DirectoryStore
from infra.stores.open import open_store
from infra.stores.probe import probe
from infra.stores.s3_location import S3Location
from producer.checks.trainings import trainers, training_inbox
from producer.liveness import ALIVE
from producer.overview import heartbeats
from producer.request_state import MOST, first, read_result
from schemas.errors import DreamError
from schemas.layout import REQUESTS, RESULTS, WORKERS, is_request, parse_result
from schemas.result import Result

if TYPE_CHECKING:
    from infra.queues.sqs import QueueFacts
    from infra.stores.store import Store

LONGEST = 11 * 3600.0  # seconds; a message can be renewed for twelve hours
TIMED = 20  # results whose timings are read
SKEW_SEEN, SKEW_HARMFUL = 5.0, 300.0  # seconds; S3 refuses at 900
NAMED = 5  # keys in a finding
FOLLOW = "do what the message says"
SPACE_LITTLE, SPACE_NONE = 5 << 30, 256 << 20  # bytes


async def examine(store_url: str, queues: Sequence[str], *, attempts: int = 3) -> AsyncIterator[Finding]:
    """Check a store, its workers, and their queues.

    Args:
        attempts: the workers' --max-attempts.
    """
    slowest = None
    async with AsyncExitStack() as stack:
        store = None
        async for finding, opened in _opened(store_url, stack):
            store = opened
            yield finding
        if store is not None:
            for check in (promises, clock, space, versions, inbox, training_inbox):
                if (result := await _finding(check(store), check.__name__)) is not None:
                    yield result
            if (result := await _finding(trainers(store, store_url), "trainers")) is not None:
                yield result
            try:
                for finding in await _workers(store, store_url):
                    yield finding
                slowest = await _slowest(store)
            except DreamError as error:
                yield Finding("workers", "fail", str(error), FOLLOW)
        for url in queues:
            name = f" of {url.rpartition('/')[2]}" if len(queues) > 1 else ""
            for finding in await _queue(url, store_url, attempts, slowest):
                yield Finding(finding.check + name, finding.status, finding.found, finding.fix)


async def _opened(url: str, stack: AsyncExitStack) -> AsyncIterator[tuple[Finding, Store | None]]:
    if "://" not in url and not Path(url).expanduser().is_dir():
        fix = "name another with --store or DREAMDROP_STORE, or start a worker, which makes it"
        yield Finding("store", "fail", f"there is no directory {url!r}", fix), None
        return
    if S3Location.of(url) is not None:
        yield await _credentials(), None  # before the store, which may not open without them
    try:
        store = await stack.enter_async_context(open_store(url))
    except DreamError as error:
        yield Finding("store", "fail", str(error), "fix this first; the other checks need the store"), None
    else:
        yield Finding("store", "pass", f"{store.url} answers"), store


async def _credentials() -> Finding:
    from infra.aws import credentials

    source = await credentials()
    if source is None:
        fix = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a machine with a role"
        )
        return Finding("credentials", "fail", "the AWS libraries find no credentials", fix)
    return Finding("credentials", "pass", f"found ({source})")


async def _finding(work: Awaitable[Finding | None], check: str) -> Finding | None:
    try:
        return await work
    except DreamError as error:
        return Finding(check, "fail", str(error), FOLLOW)


async def promises(store: Store) -> Finding:
    """Whether the store does what the protocol needs, above all conditional writes."""
    verdict = await probe(store, racers=8, rounds=4)
    if not verdict.is_atomic:
        return Finding("promises", "warn", verdict.reason, "run one worker only, or use another store")
    note = "" if verdict.conditional_delete else "; deletes are not conditional, so each costs one read more"
    return Finding("promises", "pass", f"creates are atomic, and reads are fresh{note}")


async def clock(store: Store) -> Finding:
    """Compare the store's clock with ours, by an object's date."""
    key = f"{WORKERS}.probe-clock-{secrets.token_hex(6)}"
    begun = time.time()
    await store.create(key, b"")
    try:
        info = await store.head(key)
        ended = time.time()
    finally:
        await store.delete(key)
    if info is None:
        return Finding("clock", "fail", "an object is missing just after it was written", "see `promises`")
    apart = max(begun - 1 - info.modified, info.modified - ended, 0.0)  # S3's dates are whole seconds
    if apart < SKEW_SEEN:
        return Finding("clock", "pass", "the clocks of this machine and the store agree")
    why = f"the clocks of this machine and the store differ by {apart:,.0f} s; S3 refuses requests at 900 s"
    return Finding(
        "clock", "fail" if apart >= SKEW_HARMFUL else "warn", why, "set this machine's clock (NTP)"
    )


async def space(store: Store) -> Finding | None:
    """Check the free space, where the store is a directory."""
    parts = urlsplit(store.url)
    if parts.scheme != "file":
        return None
    usage = await asyncio.to_thread(shutil.disk_usage, unquote(parts.path))
    why = f"{usage.free / (1 << 30):,.1f} of {usage.total / (1 << 30):,.1f} GiB are free"
    if usage.free < SPACE_NONE:
        return Finding("disk", "fail", why, "free some space; soon results cannot be written")
    return Finding("disk", "warn" if usage.free < SPACE_LITTLE else "pass", why)


async def versions(store: Store) -> Finding | None:
    """Whether a bucket keeps what is overwritten and deleted; None where there are no versions."""
    look = getattr(store, "versions", None)  # what `open_store` made has it
    kept = "none" if look is None else await look()
    if kept == "none":
        return None
    if kept == "expire":
        return Finding("versions", "pass", "the bucket is versioned, and a lifecycle rule ends old versions")
    why = (
        "the bucket keeps every version: each worker's heartbeat leaves one every 10 s, and each request some"
    )
    fix = "add a lifecycle rule with NoncurrentVersionExpiration; docs/queues.md has one"
    return Finding("versions", "warn", why, fix)


async def inbox(store: Store) -> Finding | None:
    """Name the files of the inbox that no worker takes; None when there are none."""
    left = [i.key async for i in first(store.list(REQUESTS), MOST) if not is_request(i.key)]
    if isinstance(store, DirectoryStore):  # after the listing, which finds them
        left += sorted(key for key in safe_paths.ignored if key.startswith(REQUESTS))
    if not left:
        return None
    names = ", ".join(map(repr, left[:NAMED])) + (", ..." if len(left) > NAMED else "")
    why = f"{len(left):,} file{'s' * (len(left) != 1)} under {REQUESTS} that no worker takes: {names}"
    fix = "name requests .json or .jsonl, without a dot in front; copy files, instead of linking to them"
    return Finding("inbox", "warn", why, fix)


async def _workers(store: Store, store_url: str) -> list[Finding]:
    """Which workers are alive, and which models they serve."""
    beats = await heartbeats(store)
    if not beats:
        why = f"no heartbeat in the last {ALIVE:g} s"
        return [Finding("workers", "warn", why, f"start one: dreamdrop worker --store {store_url}")]
    states = sorted(str(beat.get("state", "alive")) for beat in beats)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    alive = Finding("workers", "pass", counts)
    lists = [beat["models"] for beat in beats if isinstance(beat.get("models"), list)]
    served = {str(name) for names in lists for name in names}
    defaults = {str(beat.get("default_model", "")) for beat in beats} - {""}
    known = served | set(await published.names(store))
    unknown = sorted(default for default in defaults if default.partition("@")[0] not in known)
    if unknown:
        why = f"the workers do not know their default model {', '.join(unknown)}"
        return [
            alive,
            Finding("models", "fail", why, "start them with --model and --models that match, or publish it"),
        ]
    if len(defaults) > 1:
        why = f"the workers have different default models: {', '.join(sorted(defaults))}"
        return [
            alive,
            Finding(
                "models",
                "warn",
                why,
                "start all with the same --model; any of them draws a request without one",
            ),
        ]
    names = ", ".join(sorted(served)[:8]) or "no models announced"
    return [alive, Finding("models", "pass", f"{names}; default: {', '.join(defaults) or 'unknown'}")]


async def _slowest(store: Store) -> float | None:
    """Seconds that the slowest of the newest results took; None if there are none."""
    commits = {id: info async for info in first(store.list(RESULTS), MOST) if (id := parse_result(info.key))}
    ids = heapq.nlargest(TIMED, commits, key=lambda id: commits[id].modified)
    seconds = []
    for result in await asyncio.gather(*(read_result(store, id) for id in ids), return_exceptions=True):
        if isinstance(result, Result) and result.timings is not None:  # not what strangers put there
            seconds.append(result.timings.total)
    return max(seconds, default=None)


async def _queue(url: str, store_url: str, attempts: int, slowest: float | None) -> list[Finding]:
    """Whether a queue is reachable and set up for the store."""
    from infra.queues.setup import Account
    from infra.queues.sqs import Queue

    location = S3Location.of(store_url) or S3Location("")
    try:
        async with Queue(url, patience=10.0) as queue:
            facts = await queue.facts()
        wiring = await asyncio.to_thread(
            lambda: Account().check(url, location.bucket, location.prefix, attempts=attempts)
        )
    except DreamError as error:
        return [Finding("queue", "fail", str(error), "fix this first")]
    reachable = Finding("queue", "pass", f"{facts.visible} waiting, {facts.in_flight} in flight")
    return [reachable, visibility(facts, slowest), *_without_notifications(wiring)]


def visibility(facts: QueueFacts, slowest: float | None) -> Finding:
    """Compare how long a received message stays hidden with how long requests take."""
    measured = (
        f"the slowest of the newest results took {slowest:,.1f} s"
        if slowest is not None
        else "nothing has been drawn yet"
    )
    if slowest is not None and slowest > LONGEST:
        why = f"{measured}; a message can be renewed for at most 12 hours"
        return Finding("visibility", "fail", why, "ask for fewer images or steps per request")
    if facts.visibility < 30:
        why = f"{facts.visibility:g} s: a consumer that does not renew sees a message again while it is drawn"
        return Finding("visibility", "warn", why, "set VisibilityTimeout to 60")
    return Finding(
        "visibility", "pass", f"{measured}; workers hide a message for 60 s and renew that every 20 s"
    )


def _without_notifications(findings: list[Finding]) -> list[Finding]:
    """One warning for a bucket that notifies nobody. It may be meant: then clients send to the queue themselves."""
    silent = any(f.check == "notifications" and f.status == "fail" for f in findings)
    forbidden = any(f.check == "queue policy" and f.status == "fail" for f in findings)
    if not (silent and forbidden):
        return findings
    why = "the bucket does not notify this queue: only the slow sweep finds dropped files"
    fix = "run `dreamdrop setup queue --apply`, or send requests to the queue (`dreamdrop submit --queue`)"
    rest = [f for f in findings if f.check not in ("notifications", "queue policy")]
    return [Finding("notifications", "warn", why, fix), *rest]
