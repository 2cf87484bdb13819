"""OpenTelemetry spans of requests, sent by OTLP over HTTP where OTEL_EXPORTER_OTLP_ENDPOINT is set.

Nothing is added to a request for it: its trace follows from its id and its bytes, so that the client, every worker that
has it and every retry write into one trace. A client that has a trace of its own puts its `traceparent` (W3C) into the
request's `metadata`; then that trace is continued, and the result repeats it. Spans hold ids and figures, no prompts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from infra.logs import redacted
from infra.lru import LruCache

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Parent(NamedTuple):
    """The span that is above all spans of a request."""

    trace: int
    span: int
    sampled: bool
    derived: bool  # from the request itself: no client has sent it


Facts = Mapping[str, str | int | float | bool]
_NO_FACTS: Facts = {}
_parents: LruCache[tuple[str, str], Parent] = LruCache(1000)
_lock = threading.Lock()
_next: Parent | None = None  # whose ids the span that is being started has


def parent_of(id: str, fingerprint: str, body: bytes) -> Parent:
    """The parent of a request's spans: its metadata's `traceparent`, else what follows from id and fingerprint.

    Args:
        id: the request's, or the one that its result got because another body has its id.
        fingerprint: SHA-256 of the body, in hexadecimal.
    """
    if (known := _parents.get((id, fingerprint))) is None:
        known = _parents[id, fingerprint] = _given(body) or _derived(id, fingerprint)
    return known


def _given(body: bytes) -> Parent | None:
    if b"traceparent" not in body:
        return None
    try:
        text = json.loads(body)["metadata"]["traceparent"]
        found = _TRACEPARENT.fullmatch(text)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return Parent(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1), False)


def _derived(id: str, fingerprint: str) -> Parent:
    name = id.removesuffix(f"~{fingerprint[:8]}")
    digest = hashlib.sha256(f"dreamdrop {name} {fingerprint}".encode()).digest()
    return Parent(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]), True, True)


def record(
    name: str,
    id: str,
    fingerprint: str,
    body: Callable[[], bytes],
    *,
    seconds: float,
    ago: float = 0.0,
    error: str = "",
    top: bool = False,
    facts: Facts = _NO_FACTS,
) -> None:
    """Send a span that has ended; without a collector, do nothing.

    Args:
        body: gives the request's bytes; called at most once for a request.
        seconds: that it lasted.
        ago: seconds since its end.
        error: the code of a failure.
        top: it is the span that a derived parent stands for: the client's own.
        facts: attributes, named `dreamdrop.<name>`.
    """
    tracer = _tracer()
    if tracer is None:
        return
    try:
        parent = _parents.get((id, fingerprint)) or parent_of(id, fingerprint, body())
        with _lock:  # clients in several threads may share a process
            _send(tracer, name, parent, seconds, ago, error, top, {"id": id, **facts})
    except Exception as failure:  # a span is never worth a request
        log.warning("a span was not sent", extra={"error": redacted(failure)})


def _send(
    tracer: Any,
    name: str,
    parent: Parent,
    seconds: float,
    ago: float,
    error: str,
    top: bool,
    facts: Facts,
) -> None:
    global _next
    from opentelemetry import trace
    from opentelemetry.context.context import Context

    own_root = top and parent.derived
    _next = parent if own_root else None
    above = trace.SpanContext(
        parent.trace, parent.span, is_remote=True, trace_flags=trace.TraceFlags(parent.sampled)
    )
    context = None if own_root else trace.set_span_in_context(trace.NonRecordingSpan(above))
    caller = trace.get_current_span().get_span_context()  # of a program that uses our client
    ended = time.time_ns() - int(ago * 1e9)
    span = tracer.start_span(
        name,
        context=Context() if context is None else context,
        links=[trace.Link(caller)] if caller.is_valid else [],
        attributes={f"dreamdrop.{key}": value for key, value in facts.items()},
        start_time=ended - int(max(0.0, seconds) * 1e9),
    )
    if error:
        span.set_attribute("error.type", error)
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended)


@cache
def _tracer() -> Any:
    if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED") == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ModuleNotFoundError as error:
        log.warning("no traces are sent: pip install 'dreamdrop[otel]'", extra={"missing": error.name})
        return None
    facts = {"service.version": importlib.metadata.version("dreamdrop")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        facts["service.name"] = "dreamdrop"

    class Ids(RandomIdGenerator):
        """Gives a request's top span the ids that follow from the request, and all others random ones."""

        def generate_trace_id(self) -> int:
            return _next.trace if _next is not None else super().generate_trace_id()

        def generate_span_id(self) -> int:
            return _next.span if _next is not None else super().generate_span_id()

    provider = TracerProvider(resource=Resource.create(facts), id_generator=Ids())
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter())
    )  # a thread; flushed when the process ends
    return provider.get_tracer("dreamdrop")
