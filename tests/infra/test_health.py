"""The health check of a container, against a facade and another web server that listen."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.health import ALIVE, READY, problems
from tests.producer.facade import facade, ready, worker

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def answering(**statuses: int) -> Iterator[str]:
    """A web server that answers the given paths; any other with 404. Yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.get(self.path.strip("/"), 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield str(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@contextlib.contextmanager
def closed() -> Iterator[str]:
    """A port of loopback that nobody can listen on while the block lasts."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield str(held.getsockname()[1])


def ports(worker: str, server: str) -> dict[str, str]:
    return {"DREAMDROP_METRICS_PORT": worker, "DREAMDROP_PORT": server}


def test_a_facade_is_healthy_before_a_worker_is_there_and_ready_with_one(tmp_path: Path):
    """A web server without workers must not be restarted; whoever waits for pictures waits for a worker, too."""
    with facade(tmp_path) as address, closed() as nobody:
        environment = ports(nobody, address.rpartition(":")[2])
        assert problems(environment, ALIVE) == []
        [problem] = problems(environment, READY)
        assert "/readyz with 503" in problem
        with worker(tmp_path):
            ready(address)
            assert problems(environment, READY) == []


def test_a_worker_is_asked_on_its_own_port():
    with answering(healthz=200, readyz=503) as port, closed() as nobody:
        assert problems(ports(port, nobody), ALIVE) == []
        assert problems(ports(port, nobody), READY) == [
            f"port {port} (DREAMDROP_METRICS_PORT) answers /readyz with 503"
        ]


def test_one_sick_process_of_two_is_enough():
    """`dreamdrop up` runs both."""
    with answering(healthz=500) as worker_port, answering(livez=200) as server_port:
        [problem] = problems(ports(worker_port, server_port))
        assert problem.startswith(f"port {worker_port} (DREAMDROP_METRICS_PORT)")


def test_a_process_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch):
    """It still listens, and the kernel still accepts; the answer never comes."""
    monkeypatch.setattr("infra.health.TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung, closed() as nobody:
        port = str(hung.getsockname()[1])
        [problem] = problems(ports(port, nobody))
        assert f"port {port} (DREAMDROP_METRICS_PORT) does not answer /healthz" in problem


def test_what_is_no_http_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server, closed() as nobody:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"\x00\x01 nonsense\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        [problem] = problems(ports(nobody, str(server.getsockname()[1])))
        thread.join(60)
        assert "does not answer /livez" in problem


@pytest.mark.parametrize("port", ["http", "70000", "-1", "²"])
def test_a_port_that_is_none_is_named(port: str):
    with closed() as nobody:
        [problem] = problems(ports(nobody, port))
    assert problem.startswith(f"DREAMDROP_PORT is {port!r}")


def test_the_command_says_what_is_wrong_and_what_to_do(tmp_path: Path):
    """As the image runs it: with -P, in a working directory that has modules of the same names."""
    (tmp_path / "http").mkdir()
    (tmp_path / "http" / "__init__.py").write_text("raise SystemExit('planted')")

    def check(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "infra.health", *arguments],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "http_proxy": "http://127.0.0.1:9",
                "HTTP_PROXY": "http://127.0.0.1:9",
            }
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    with closed() as nobody, closed() as nobody_either:
        sick = check(ports(nobody, nobody_either))
        assert sick.returncode == 1
        assert nobody in sick.stdout
        assert "DREAMDROP_METRICS_PORT" in sick.stdout
        with answering(healthz=200, readyz=200) as port:
            well = check(ports(port, nobody))
            assert (well.returncode, well.stdout, well.stderr) == (0, "", "")
            assert check(ports(port, nobody), "--ready").returncode == 0
            assert check(ports(port, nobody), "--what").returncode == 2
