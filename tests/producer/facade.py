"""A facade that really listens, in front of a store, and a worker process beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from producer.web.app import create_app
from producer.web.connections import HalfCloseProtocol
from producer.web.settings import FacadeSettings

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def facade(store: str | Path, **settings: Any) -> Iterator[str]:
    """Serve a store on a free port of loopback; yields the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(FacadeSettings(store=str(store), **settings))
        config = uvicorn.Config(app, http=HalfCloseProtocol, log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the facade did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(120)


@contextlib.contextmanager
def worker(store: str | Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A worker process of a store, with flat pictures unless the options name another renderer."""
    fixed = ["--grace", "2", *([] if "--renderer" in options else ["--renderer", "null"])]
    process = subprocess.Popen(
        [sys.executable, "-m", "producer.cli", "worker", "--store", str(store), *fixed, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def ready(address: str) -> None:
    """Wait until a worker is alive behind a facade."""
    end = time.monotonic() + 240
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < end, "no worker came to life"
        time.sleep(0.05)


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the `dreamdrop` command."""
    return subprocess.Popen(
        [sys.executable, "-m", "producer.cli", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def address_of(process: subprocess.Popen[str]) -> str:
    """The address in a command's "ready" line."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"ready: (http://\S+)", line):
            return match[1]
    raise AssertionError("".join(lines))
