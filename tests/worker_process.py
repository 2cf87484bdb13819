"""A real `dreamdrop worker` process on a real directory, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def worker(
    store: Path | str, *options: str, null: dict[str, Any] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a worker with the null renderer; it is ended when the block is left."""
    command = [sys.executable, "-m", "consumer", "--store", str(store), "--renderer", "null", "--lease", "2"]
    command += ["--null", json.dumps(null or {}), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.stderr is not None
        process.stderr.close()
        process.wait()


def drop(store: Path, name: str, document: Any) -> Path:
    """Put a request file in place with one rename, so that it is never half written."""
    path = store / "requests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    half = path.with_name(path.name + ".tmp")
    half.write_bytes(body)
    half.rename(path)
    return path


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files below a folder that workers change meanwhile; `Path.rglob` fails when a folder is removed."""
    return [
        Path(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if fnmatch(name, pattern) and not name.startswith(".")
    ]


def result(store: Path, id: str, timeout: float = 120.0) -> dict[str, Any]:
    """Wait for a request's result."""
    path = store / "results" / id / "result.json"
    ends = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > ends:
            raise AssertionError(
                f"no result for {id!r} after {timeout} s; there is {sorted(p.name for p in files(store, '*.json'))}"
            )
        time.sleep(0.02)
    result: dict[str, Any] = json.loads(path.read_bytes())
    return result
