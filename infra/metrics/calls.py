"""Metrics of what a process asks of its store and its queues, and of the requests that it ends there."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from infra.queues.leases import TROUBLE, QueueClient
from schemas import layout

if TYPE_CHECKING:
    from infra.queues.message import Message

T = TypeVar("T")

_STORE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
_QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)  # seconds; a receive waits up to 20


class Calls:
    """One process's calls; a `infra.stores.timed.Watcher`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.store_seconds = Histogram(
            "dreamdrop_store_call_seconds",
            "Seconds of a call to the store, its retries included.",
            ["verb"],
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self.store_failures = Counter(
            "dreamdrop_store_call_failures",
            "Calls that the store did not answer, after all retries.",
            ["verb"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "dreamdrop_queue_call_seconds",
            "Seconds of a call to the queue; a receive waits up to 20 for a message.",
            ["verb"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.queue_failures = Counter(
            "dreamdrop_queue_call_failures",
            "Calls that the queue did not answer, after all retries.",
            ["verb"],
            registry=registry,
        )
        self.ended = Counter(
            "dreamdrop_requests_ended",
            "Results that this process committed, by kind (request, batch, training), status and failure code.",
            ["kind", "status", "code"],
            registry=registry,
        )

    def called(self, verb: str, seconds: float, failed: bool) -> None:
        self.store_seconds.labels(verb).observe(seconds)
        if failed:
            self.store_failures.labels(verb).inc()

    def moved(self) -> None:
        """Nothing is counted before a call has ended."""

    def created(self, key: str, body: bytes) -> None:
        """Count a result: the create of `result.json` ends a request, whichever way it ended."""
        training = key.startswith(layout.TRAINING_RESULTS)
        if not key.endswith(f"/{layout.COMMIT}") or not (training or key.startswith(layout.RESULTS)):
            return
        result = json.loads(body)
        kind = "training" if training else "batch" if result.get("task") == "batch" else "request"
        code = (result.get("failure") or {}).get("code", "")
        self.ended.labels(kind, result.get("status", ""), code).inc()


class TimedQueue(QueueClient):
    """A queue whose calls are timed; it passes everything on."""

    def __init__(self, queue: QueueClient, calls: Calls) -> None:
        self.url = queue.url
        self._queue = queue
        self._calls = calls

    async def receive(self, most: int, *, wait: float = 20.0, visibility: float = 60.0) -> list[Message]:
        return await self._timed("receive", self._queue.receive(most, wait=wait, visibility=visibility))

    async def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]:
        return await self._timed("renew", self._queue.renew(messages, visibility))

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        return await self._timed("delete", self._queue.delete(messages))

    async def _timed(self, verb: str, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            answer = await call
        except TROUBLE:
            self._calls.queue_failures.labels(verb).inc()
            raise
        self._calls.queue_seconds.labels(verb).observe(time.perf_counter() - began)
        return answer
