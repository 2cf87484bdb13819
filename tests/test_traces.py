"""Spans of one request from the client, the queueing and the worker, received by a collector in this process."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.traces import parent_of
from schemas.layout import fingerprint, other_body_id
from tests.worker_process import drop, result, worker

ROOT = Path(__file__).parents[1]
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """An OTLP collector on loopback: it keeps the spans that it receives."""

    def __init__(self) -> None:
        pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
        protocol = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        collector = self
        self.spans: list[Any] = []
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                request = protocol.ExportTraceServiceRequest.FromString(body)
                collector.bodies.append(body)
                for of_process in request.resource_spans:
                    for scope in of_process.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()
                self.wfile.write(protocol.ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, *names: str) -> dict[str, Any]:
        """The spans by name, once all of these are there."""
        ends = time.monotonic() + 120
        while not set(names) <= {span.name for span in self.spans}:
            assert time.monotonic() < ends, [span.name for span in self.spans]
            time.sleep(0.05)
        return {span.name: span for span in self.spans}


def facts(span: Any) -> dict[str, Any]:
    values = {entry.key: entry.value for entry in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Every process that the test starts sends its spans there, soon."""
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield made
    made.close()


def submit(store: Path, *options: str) -> None:
    command = [sys.executable, "-m", "producer.cli", "submit", *options, "--store", str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_one_trace_holds_the_client_and_the_worker(tmp_path: Path, collector: Collector):
    """The client's span is the top one; claim, render, store and commit are below it. No prompt is sent."""
    request = tmp_path / "cat.json"
    request.write_text(json.dumps({"id": "cat", "prompt": "a quiet cat", "steps": 2}))
    store = tmp_path / "store"
    submit(store, str(request))
    with worker(store, null={"seconds_per_step": 0.01}):
        body = result(store, "cat")
        spans = collector.wait_for("submit", "claim", "render", "store", "commit")
    top = spans.pop("submit")
    assert not top.parent_span_id
    assert {span.trace_id for span in spans.values()} == {top.trace_id}
    assert {span.parent_span_id for span in spans.values()} == {top.span_id}
    assert len({span.span_id for span in spans.values()}) == 4
    assert facts(spans["commit"])["dreamdrop.status"] == "succeeded"
    assert facts(spans["render"])["dreamdrop.model"] == "doodle"
    assert facts(spans["claim"])["dreamdrop.worker"] == body["worker"]
    assert spans["render"].end_time_unix_nano >= spans["render"].start_time_unix_nano + 10_000_000
    starts = [spans[name].start_time_unix_nano for name in ("claim", "render", "commit")]
    assert starts == sorted(starts)
    # Whoever has the result finds the trace by it.
    assert parent_of("cat", body["fingerprint"], b"").trace.to_bytes(16) == top.trace_id
    assert not any(b"quiet" in one for one in collector.bodies)


def test_a_clients_own_trace_is_continued(tmp_path: Path, collector: Collector):
    """By the `traceparent` in the metadata, which the result repeats; a failure is an error of its span."""
    document = {"prompt": "broken", "steps": 1, "metadata": {"traceparent": GIVEN}}
    with worker(tmp_path, null={"fail_on": "broken"}):
        drop(tmp_path, "mine.json", document)
        assert result(tmp_path, "mine")["metadata"]["traceparent"] == GIVEN
        spans = collector.wait_for("claim", "commit")
    for span in spans.values():
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (GIVEN[3:35], GIVEN[36:52])
    assert facts(spans["commit"])["error.type"] == "render_error"
    assert spans["commit"].status.code == 2


def test_a_request_has_one_trace_under_any_of_its_ids():
    """Its result may have another id; another body has another trace; what is no traceparent is ignored."""
    body, other = b'{"prompt": "a"}', b'{"prompt": "b"}'
    one = parent_of("cat", fingerprint(body), body)
    assert parent_of(other_body_id("cat", fingerprint(body)), fingerprint(body), body) == one
    assert parent_of("cat", fingerprint(other), other).trace != one.trace
    assert one.derived
    assert one.sampled
    for number, wrong in enumerate(
        (5, "x", GIVEN[:-1], "ff" + GIVEN[2:], GIVEN.replace("4bf9", "zzzz"), None)
    ):
        text = json.dumps({"metadata": {"traceparent": wrong}}).encode()
        assert parent_of(f"w{number}", fingerprint(text), text).derived
    given = json.dumps({"metadata": {"traceparent": GIVEN}}).encode()
    assert parent_of("given", fingerprint(given), given)[0] == int(GIVEN[3:35], 16)


def test_without_the_extra_a_line_says_what_to_install(tmp_path: Path):
    """Requests are drawn all the same."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from infra.traces import record\nfrom infra.logs import log_lines\nlog_lines('info', 'infra')\n"
        "record('x', 'id', 'f', lambda: b'', seconds=1)\nrecord('x', 'id', 'f', lambda: b'', seconds=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install 'dreamdrop[otel]'") == 1
