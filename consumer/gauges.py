"""Gauges of a worker that are read when metrics are: what it holds, what waits, and whether it is well."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from consumer import metrics
from infra.metrics.backlog import Backlog

if TYPE_CHECKING:
    from consumer.worker import Worker
    from infra.models.cache import ModelCache
    from infra.queues.sqs import Queue
    from infra.stores.store import Store

_EVERY = 30.0  # seconds between two looks at the cache of published models


@asynccontextmanager
async def watched(
    worker: Worker, store: Store, queues: Sequence[Queue], cache: ModelCache, host: str, port: int | None
) -> AsyncIterator[None]:
    """Serve the metrics and probes of a worker until the block is left; with no port, serve nothing.

    Args:
        store: the one that is counted.

    Raises:
        DreamError: the address cannot be used.
    """
    if port is None:
        yield
        return
    from infra.metrics.server import serving  # an HTTP library that is seldom needed

    backlog = Backlog(store, queues)
    gauges = Gauges(worker, backlog, cache)

    async def refresh() -> None:
        await gauges.refresh()
        await backlog.refresh()

    for collector in (backlog, gauges):
        metrics.REGISTRY.register(collector)
    try:
        async with serving(
            host,
            port,
            metrics.REGISTRY,
            unhealthy=lambda: unhealthy(worker),
            not_ready=lambda: not_ready(worker),
            refresh=refresh,
        ):
            yield
    finally:
        for collector in (backlog, gauges):
            metrics.REGISTRY.unregister(collector)


def unhealthy(worker: Worker) -> str:
    """Why a supervisor should start this worker anew; "" for no reason. A silent store is none."""
    if not any(renderer.healthy for renderer in worker.renderers):
        return "no renderer makes progress"
    return "a loop of the worker failed" if worker.failed else ""


def not_ready(worker: Worker) -> str:
    """Why this worker takes no requests; "" when it does."""
    if worker.stop.is_set():
        return "draining"
    return "" if any(renderer.ready for renderer in worker.renderers) else "no renderer is ready"


class Gauges(Collector):
    """One worker's, in a registry. Only the event loop's thread may collect them."""

    def __init__(self, worker: Worker, backlog: Backlog, cache: ModelCache) -> None:
        self._worker = worker
        self._backlog = backlog
        self._cache = cache
        self._cache_bytes = 0
        self._due = float("-inf")

    async def refresh(self) -> None:
        """Measure the cache again, if the last time was long ago."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _EVERY
            self._cache_bytes = await asyncio.to_thread(self._cache.size)

    def collect(self) -> Iterable[Metric]:
        worker, jobs = self._worker, self._worker.jobs
        yield InfoMetricFamily(
            "dreamdrop_worker",
            "The worker's session, as results and logs name it, and its default model.",
            value={"session": worker.claims.session, "default_model": worker.settings.default_model},
        )
        yield _gauge("draining", "1 while the worker drains.", float(worker.stop.is_set()))
        held = GaugeMetricFamily(
            "dreamdrop_requests_held", "Requests and batches that the worker has claimed.", labels=["kind"]
        )
        held.add_metric(["request"], len(jobs.active))
        held.add_metric(["batch"], len(jobs.batches))
        yield held
        yield from self._renderers()
        yield from self._pictures()
        yield from self._pending()
        yield _gauge("model_cache_bytes", "Bytes of published models on this machine.", self._cache_bytes)
        yield _gauge("model_cache_limit_bytes", "Bytes that they may take.", self._cache.max_bytes)

    def _renderers(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily(
            "dreamdrop_renderer_ready", "1 while a renderer can draw.", labels=["device"]
        )
        images = GaugeMetricFamily(
            "dreamdrop_renderer_images", "Images that a renderer holds.", labels=["device"]
        )
        limit = GaugeMetricFamily(
            "dreamdrop_renderer_images_limit", "Images that it may hold.", labels=["device"]
        )
        for renderer in self._worker.renderers:
            device = renderer.settings.device
            ready.add_metric([device], float(renderer.ready is not None))
            images.add_metric([device], renderer.pending)
            limit.add_metric([device], self._worker.settings.ahead)
        yield from (ready, images, limit)

    def _pictures(self) -> Iterable[Metric]:
        half = self._worker.settings.picture_memory * len(self._worker.renderers) // 2
        inputs, drawn = self._worker.jobs.picture_bytes()
        pictures = GaugeMetricFamily(
            "dreamdrop_picture_bytes",
            "Bytes of decoded pictures: inputs, and images being drawn or not stored yet.",
            labels=["kind"],
        )
        pictures.add_metric(["inputs"], inputs)
        pictures.add_metric(["drawn"], drawn)
        yield pictures
        yield _gauge("picture_limit_bytes", "Bytes that each kind may take.", half)

    def _pending(self) -> Iterable[Metric]:
        images: Counter[str] = Counter(express=0, normal=0)
        seconds = 0.0
        for job in self._worker.jobs.active.values():
            missing = len(job.missing())
            images["express" if job.express else "normal"] += missing
            seconds += missing * (metrics.COSTS.image((job.plan.model, *job.drawn_size())) or 0.0)
        pending = GaugeMetricFamily(
            "dreamdrop_backlog_images", "Images of claimed requests that are not drawn.", labels=["lane"]
        )
        for lane, count in images.items():
            pending.add_metric([lane], count)
        yield pending
        inbox, queue = self._backlog.waiting
        work = GaugeMetricFamily(
            "dreamdrop_backlog_gpu_seconds",
            "Seconds of one device for what waits, from measured times; 0 before the first. `claimed` is this "
            "worker's; `inbox` and `queue` are the whole store's, so take their maximum over workers, not their sum.",
            labels=["place"],
        )
        each = metrics.COSTS.request or 0.0
        for place, amount in (("claimed", seconds), ("inbox", inbox * each), ("queue", queue * each)):
            work.add_metric([place], amount)
        yield work


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dreamdrop_{name}", text, value=value)
