"""An interruption notice in the instance's metadata drains a worker; without one nothing happens."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.worker_process import drop, result, worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Metadata(ThreadingHTTPServer):
    """EC2's instance metadata service, version 2, but only its spot notices."""

    notice: dict[str, str] | list[str] | None = None
    looks = 0


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._answer(200, b"a-token")

    def do_GET(self) -> None:
        self.server.looks += 1
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            self._answer(401, b"")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self._answer(404, b"")
        else:
            self._answer(200, json.dumps(self.server.notice).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


def test_a_notice_drains_the_worker_and_its_work_is_given_back(metadata: Metadata, tmp_path: Path):
    """Another worker can take the request at once, and no attempt is counted."""
    drop(tmp_path, "long.json", {"prompt": "x", "steps": 100})
    with worker(tmp_path, "--spot", "--grace", "0.2", null={"seconds_per_step": 0.2}) as process:
        ends = time.monotonic() + 120
        while not (tmp_path / "claims/long").exists() or not metadata.looks:
            assert time.monotonic() < ends, "the worker does not begin, or does not look"
            time.sleep(0.05)
        metadata.notice = {"action": "terminate", "time": "2026-01-01T00:00:00Z"}
        assert process.wait(120) == 0
        assert process.stderr is not None
        assert "will be interrupted" in process.stderr.read()
    with worker(tmp_path):
        assert result(tmp_path, "long")["attempts"] == 1


def test_a_worker_that_is_not_told_to_look_asks_nobody(metadata: Metadata, tmp_path: Path):
    """Only EC2 has a metadata service at that address."""
    drop(tmp_path, "cat.json", {"prompt": "x", "steps": 1})
    with worker(tmp_path):
        result(tmp_path, "cat")
    assert metadata.looks == 0


def test_an_answer_that_no_ec2_gives_is_not_taken_for_a_notice(metadata: Metadata, tmp_path: Path):
    """Elsewhere the address may belong to another service, which must not be able to end a worker."""
    metadata.notice = ["anything"]
    with worker(tmp_path, "--spot") as process:
        ends = time.monotonic() + 120
        while not metadata.looks:
            assert time.monotonic() < ends, "the worker does not look"
            time.sleep(0.05)
        drop(tmp_path, "cat.json", {"prompt": "x", "steps": 1})
        result(tmp_path, "cat")
        assert process.poll() is None
