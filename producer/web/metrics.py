"""What the facade counts, for Prometheus."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # seconds
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}


@dataclass
class Metrics:
    """What this facade counts; a registry of its own, so that two can live in one process."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.answers = Counter(
            "dreamdrop_http_answers",
            "Answers by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "dreamdrop_http_seconds",
            "Seconds from a request's first byte to the answer's last.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "dreamdrop_callers_waiting", "Callers that wait for a picture.", registry=self.registry
        )
        self.workers = Gauge(
            "dreamdrop_workers_alive", "Workers that said lately that they live.", registry=self.registry
        )


class Measured:
    """ASGI middleware: count and time every answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        began, status = loop.time(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # the pattern: ids would be endless
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.answers.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(method, route).observe(loop.time() - began)
