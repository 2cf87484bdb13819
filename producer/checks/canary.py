"""Sends one small test request (a canary) and follows it hop by hop until its picture can be read.

Each hop can fail by itself: the store mangles the key, the listing or the notification spells it
differently, no worker takes it, the model does not load, the result cannot be read. The key has characters
that often break. The request object is removed if no worker took it; the result stays, as every result does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.backoff import backoff
from infra.queues.setup_check import Finding
from producer import collect
from producer.errors import Damaged
from producer.request_state import read_claim, read_progress, read_result, workers_alive
from schemas.errors import DreamError, NotFound
from schemas.events import Created, decode
from schemas.layout import EXPRESS, request_id, result_key

if TYPE_CHECKING:
    from infra.queues.sqs import Message
    from infra.stores.store import Store
    from schemas.result import Result

MANIFEST = {
    "prompt": "a red circle on a white background",
    "width": 128,
    "height": 128,
    "steps": 2,
    "seed": 1,
}
NAME = "a canary+50%=50%25/grün 鳥"  # blank, plus, percent twice, equals, slash, beyond ASCII
PROMPT = 15.0  # seconds within which an idle worker takes a request that it was notified of
DESERTED = 5.0  # seconds to wait where no worker is alive


@dataclass(slots=True)
class Canary:
    """The test request."""

    store: Store
    queues: Sequence[str]
    timeout: float  # seconds for all hops
    key: str = field(default_factory=lambda: f"{EXPRESS}doctor/{secrets.token_hex(4)} {NAME}.json")
    result: Result | None = None
    _begun: float = 0.0

    @property
    def id(self) -> str:
        return request_id(self.key)

    async def run(self) -> AsyncIterator[Finding]:
        """Drop the request and follow it. Ends with the first hop that fails."""
        self._begun = time.monotonic()
        try:
            for hop in (self._stored, self._listed, self._heard, self._drawn, self._readable):
                for finding in await self._findings(hop):
                    yield finding
                    if finding.status == "fail":
                        return
        finally:
            await self._clean_up()

    async def _findings(self, hop: Callable[[], Coroutine[Any, Any, list[Finding]]]) -> list[Finding]:
        try:
            return await hop()
        except DreamError as error:
            name = hop.__name__.strip("_")
            return [Finding(name, "fail", str(error), "do what the message says")]

    async def _stored(self) -> list[Finding]:
        body = json.dumps(MANIFEST | {"metadata": {"canary": True}}).encode()
        if not await self.store.create(self.key, body, content_type="application/json"):
            return [Finding("stored", "fail", f"the store says that the new key {self.key!r} already exists")]
        try:
            body_read = (await self.store.get(self.key)).body
        except NotFound:
            if not await self._is_taken():
                why = f"the store has no object {self.key!r} after it was written: it changes keys"
                return [Finding("stored", "fail", why, "use another store, or plain ASCII names")]
        else:
            if body_read != body:
                return [Finding("stored", "fail", "the store returned other bytes than were written")]
        return [Finding("stored", "pass", f"under {self.key}")]

    async def _listed(self) -> list[Finding]:
        folder = self.key.rpartition("/")[0] + "/"
        keys = [info.key async for info in self.store.list(folder)]
        if self.key in keys or await self._is_taken():
            return [Finding("listed", "pass", "under the same key" if self.key in keys else "already taken")]
        others = f" ({keys[0]!r} instead)" if keys else ""
        why = f"the store does not list {self.key!r}{others}: workers would not see such files"
        return [Finding("listed", "fail", why, "use another store, or plain ASCII names")]

    async def _heard(self) -> list[Finding]:
        """A worker takes it. If none does, look in the queues for its notification, which tells where it got stuck."""
        alive = await workers_alive(self.store)
        patience = self.timeout if alive else min(DESERTED, self.timeout)
        if await self._until(self._is_taken, patience):
            seconds = time.monotonic() - self._begun
            if self.queues and seconds > PROMPT:
                why = f"after {seconds:.0f} s: probably by the slow sweep, not by a notification"
                fix = "run `dreamdrop setup queue --check`, unless the queue is long or the workers are busy"
                return [Finding("heard", "warn", why, fix), self._claimed()]
            return [Finding("heard", "pass", f"by a worker, within {seconds:.1f} s"), self._claimed()]
        nobody = "no worker took it" if alive else "no worker is running, and none took it"
        start = "start one: dreamdrop worker --store ..." if not alive else "read the workers' logs"
        where = await self._in_a_queue()
        if where:
            listening = f"{start}{'' if alive else ' --queue ...'}"
            return [
                Finding("heard", "pass", f"its notification is in the queue {where}"),
                Finding("claimed", "fail", f"{nobody} within {patience:g} s", listening),
            ]
        if self.queues:
            why = f"{nobody} within {patience:g} s, and no notification arrived in the queue"
            return [Finding("heard", "fail", why, f"run `dreamdrop setup queue --check`; {start}")]
        return [Finding("heard", "fail", f"{nobody} within {patience:g} s", start)]

    def _claimed(self) -> Finding:
        return Finding("claimed", "pass", f"as {self.id}")

    async def _drawn(self) -> list[Finding]:
        if not await self._until(self._is_over, self._left()):
            progress = await read_progress(self.store, self.id)
            steps = (
                f"step {progress.steps_done} of {progress.steps_total}"
                if progress and progress.steps_total
                else "no step was done"
            )
            why = f"not finished after {self.timeout:g} s: {steps}"
            return [
                Finding("drawn", "fail", why, "give it more time with --timeout, or read the workers' logs")
            ]
        result = self.result
        assert result is not None
        if result.status != "succeeded":
            failure = result.failure
            why = f"it ended as {result.status}: {failure.message if failure else 'no reason given'}"
            return [Finding("drawn", "fail", why, f"see `dreamdrop status {self.id}` and the workers' logs")]
        seconds = f" in {result.timings.total:.1f} s" if result.timings else ""
        model = result.model.name if result.model else "?"
        return [
            Finding("drawn", "pass", f"by {result.worker or 'a worker'} with {model}{seconds}"),
            Finding("committed", "pass", result_key(self.id)),
        ]

    async def _readable(self) -> list[Finding]:
        result = self.result
        assert result is not None
        try:
            pictures = await collect.pictures(self.store, result)
        except (Damaged, OSError) as error:
            fix = "find what changes objects: a virus scanner, a lifecycle rule, a proxy"
            return [Finding("readable", "fail", f"its picture cannot be read: {error}", fix)]
        if not pictures:
            return [Finding("readable", "fail", "the result names no picture", "read the worker's log")]
        width, height = pictures[0].size
        return [Finding("readable", "pass", f"{width} x {height} pixels, as the result says")]

    def _left(self) -> float:
        return max(0.0, self._begun + self.timeout - time.monotonic())

    async def _is_taken(self) -> bool:
        return await read_claim(self.store, self.id) is not None or await self._is_over()

    async def _is_over(self) -> bool:
        self.result = self.result or await read_result(self.store, self.id)
        return self.result is not None

    async def _until(self, condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float) -> bool:
        end, pauses = time.monotonic() + seconds, backoff(0.05, 1.0)
        while not await condition():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(min(next(pauses), max(0.0, end - time.monotonic())))
        return True

    async def _in_a_queue(self) -> str:
        """The name of the queue that holds our notification, or "". All messages that were received are given back."""
        from infra.queues.sqs import Queue

        for url in self.queues:
            seen: dict[str, Message] = {}
            async with Queue(url, patience=5.0) as queue:
                try:
                    while new := {
                        m.id: m for m in await queue.receive(10, wait=2, visibility=20) if m.id not in seen
                    }:
                        seen |= new
                        if any(self._is_ours(message) for message in new.values()):
                            return url.rpartition("/")[2]
                finally:
                    await queue.renew(list(seen.values()), 0)
        return ""

    def _is_ours(self, message: Message) -> bool:
        items = decode(message.body)
        return any(isinstance(i, Created) and any(key.endswith(self.key) for key in i.keys) for i in items)

    async def _clean_up(self) -> None:
        with suppress(DreamError):
            info = await self.store.head(self.key)
            if info is not None:
                await self.store.delete(self.key, etag=info.etag)
