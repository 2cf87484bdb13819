"""A trainer's metrics and probes, on a port of their own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.metrics.backlog import Backlog
from schemas import layout

if TYPE_CHECKING:
    from infra.stores.store import Store
    from training.lease.trainer import Trainer


class Gauges(Collector):
    """What a trainer does now."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def collect(self) -> Iterable[Metric]:
        job = self._trainer.job
        yield GaugeMetricFamily(
            "dreamdrop_trainings_held",
            "Trainings that the trainer has claimed, 0 or 1.",
            value=float(job is not None),
        )
        yield GaugeMetricFamily(
            "dreamdrop_training_idle_seconds",
            "Seconds since the training that is held made progress; 0 without one.",
            value=time.monotonic() - job.pulse.at if job is not None else 0.0,
        )
        yield GaugeMetricFamily(
            "dreamdrop_draining", "1 while the trainer drains.", value=float(self._trainer.stop.is_set())
        )


@asynccontextmanager
async def watched(
    trainer: Trainer, store: Store, registry: CollectorRegistry, host: str, port: int | None
) -> AsyncIterator[None]:
    """Serve them until the block is left; with no port, serve nothing.

    Raises:
        DreamError: the address cannot be used.
    """
    if port is None:
        yield
        return
    from infra.metrics.server import serving  # an HTTP library that is seldom needed

    ProcessCollector(registry=registry)
    backlog = Backlog(store, prefix=layout.TRAININGS)
    for collector in (backlog, Gauges(trainer)):
        registry.register(collector)
    async with serving(
        host,
        port,
        registry,
        unhealthy=lambda: "a loop of the trainer failed" if trainer.failed else "",
        not_ready=lambda: "draining" if trainer.stop.is_set() else "",
        refresh=backlog.refresh,
    ):
        yield
