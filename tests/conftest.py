"""Stores for every test: `store` is each kind in turn; `s3_front` is a server that can misbehave.

Tests that use the asynchronous fixtures are marked `anyio`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from infra.child_process import thread_settings
from infra.stores.open import OpenableStore, open_store
from tests.servers.s3_front import S3Front, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the tests themselves run side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for a barrier must soon sleep: where other work shares the cores, spinning costs minutes.
os.environ.update(thread_settings(os.environ))

# Other programs' clients are installed and tried by `make interop`, which names their environment.
collect_ignore = [] if "INTEROP" in os.environ else ["interop"]

settings.register_profile("patient", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("patient")


def pretend_credentials(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point the AWS libraries at a server on loopback, and hide the user's own settings from them."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


#: Files that take a minute or more. They begin first, so that the last of them does not run alone.
LONG = (
    "training/test_learning",
    "training/test_trainer",
    "chaos/",
    "training/",
    "consumer/test_published_models",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONG) if f"tests/{name}" in item.nodeid), len(LONG))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Say in the last lines that browser tests were skipped, and how to run them."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    if skipped := [report.nodeid for report in reports if "no Chromium" in report.longrepr[2]]:
        where = os.path.commonpath([nodeid.partition("::")[0] for nodeid in skipped])
        terminalreporter.write_line(
            f"{len(skipped)} browser tests were skipped: no Chromium is on the PATH. Install it (on Debian: "
            f"apt-get install chromium), then run: make test PYTEST_ARGS={where}",
            yellow=True,
        )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the program does."""
    return "asyncio"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """A moto server in a process of its own, started once."""
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_open(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=120)


def _wait_until_open(server: subprocess.Popen[bytes], port: int) -> None:
    ends = time.monotonic() + 180
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(timeout=0.1)
        else:
            return
    pytest.fail("moto's server did not start within 180 s")


@pytest.fixture
def s3_front(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Front]:
    """A running S3 server with one bucket, `s3://bucket`, that the AWS variables point to."""
    with running(S3Front()) as front:
        pretend_credentials(monkeypatch, front.url)
        yield front


@pytest.fixture(params=["memory", "directory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh store's URL, of each kind in turn (the memory store is private to its opener)."""
    if request.param == "s3":
        request.getfixturevalue("s3_front")
        return "s3://bucket/some/prefix"
    return "memory://" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[OpenableStore]:
    """A fresh, open store, of each kind in turn."""
    async with open_store(store_url) as opened:
        yield opened
