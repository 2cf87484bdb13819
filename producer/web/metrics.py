"""Prometheus metrics of the facade, and the middleware that records every HTTP response."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # seconds
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}


@dataclass
class Metrics:
    """One facade's metrics, in a registry of their own, so that two facades can run in one process."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.answers = Counter(
            "dreamdrop_http_answers",
            "HTTP responses by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "dreamdrop_http_seconds",
            "Seconds from the first byte of a request to the last byte of its response.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "dreamdrop_callers_waiting",
            "Callers of synchronous endpoints that wait for a picture.",
            registry=self.registry,
        )
        self.workers = Gauge(
            "dreamdrop_workers_alive", "Workers with a recent heartbeat.", registry=self.registry
        )
        self.trainers = Gauge(
            "dreamdrop_trainers_alive", "Trainers with a recent heartbeat.", registry=self.registry
        )


class MetricsMiddleware:
    """ASGI middleware: count and time every HTTP response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        began, status = loop.time(), 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")  # the pattern: a label per id has no bound
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.answers.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(method, route).observe(loop.time() - began)
