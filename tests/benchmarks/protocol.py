"""What the protocol costs by itself: a real worker whose renderer draws nothing, on both stores.

The worker is started on a backlog; the clock runs from one result to a later one while the
backlog is still that deep. The S3 server is the tests' own, in this process, over memory: its
time is in the figures, so the number of store calls is printed too, which is exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infra.stores.open import open_store
from tests.benchmarks.table import Row, Table
from tests.servers.s3_front import S3Front, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parents[2]
_BODY = json.dumps({"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": 1}).encode()
_WARM = 32  # results before the clock starts


def measure(place: Path, table: Table, quick: bool) -> None:
    """Requests a second with few and with many pending, on a directory and on S3."""
    depths = (100, 1000) if quick else (100, 10_000)
    window = 100 if quick else 400  # results that are timed
    for name, kind in (("a directory", _directory), ("S3 on loopback", s3_on_loopback)):
        table.head(f"Protocol on {name}", "null renderer, one 64 x 64 image a request, one worker")
        rates = {}
        for depth in depths:
            with kind(place / f"{kind.__name__}-{depth}", depth + window + _WARM) as (url, done, calls):
                rates[depth], used = _rate(url, done, calls, window)
            table.add(Row(f"requests a second, {depth:,} pending", [rates[depth]], unit="1/s"))
            if used is not None:
                table.add(Row(f"S3 calls a request, {depth:,} pending", [used], unit="calls"))
        few, many = depths
        table.add(
            Row(f"time for a request, {many:,} over {few:,} pending", [rates[few] / rates[many]], "aim 1")
        )
    table.head("A lone durable create in a directory", "for scale: a request makes a handful of them")
    table.add(Row("creates a second", asyncio.run(_creates(place / "creates")), unit="1/s"))


def _rate(
    url: str, done: Callable[[], int], calls: Callable[[], int] | None, window: int
) -> tuple[float, float | None]:
    """Start a worker and time a window of its results: results a second, store calls a result."""
    command = [sys.executable, "-m", "consumer", "--store", url, "--renderer", "null"]
    command += ["--log-level", "warning"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(command, env=environment)
    try:
        _until(done, _WARM)
        first, began, before = done(), time.perf_counter(), calls() if calls else 0
        _until(done, first + window)
        last, ended, after = done(), time.perf_counter(), calls() if calls else 0
    finally:
        process.kill()
        process.wait()
    used = (after - before) / (last - first) if calls else None
    return (last - first) / (ended - began), used


def _until(done: Callable[[], int], count: int, patience: float = 120) -> None:
    ends = time.monotonic() + patience
    while done() < count:
        if time.monotonic() > ends:
            raise RuntimeError(f"only {done()} of {count} results after {patience:.0f} s")
        time.sleep(0.02)


@contextlib.contextmanager
def _directory(root: Path, pending: int) -> Iterator[tuple[str, Callable[[], int], None]]:
    requests, results = root / "requests", root / "results"
    requests.mkdir(parents=True)
    results.mkdir()
    for i in range(pending):
        (requests / f"{i:05}.json").write_bytes(_BODY)
    # A request's folder appears with its first image, its result a moment later: the difference of
    # two counts is the same.
    yield str(root), lambda: len(os.listdir(results)), None


@contextlib.contextmanager
def s3_on_loopback(_: Path, pending: int) -> Iterator[tuple[str, Callable[[], int], Callable[[], int]]]:
    front = S3Front()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # a killed worker hangs up in mid-sentence
    tag = hashlib.md5(_BODY, usedforsecurity=False).hexdigest()

    async def fill() -> None:
        for i in range(pending):
            key = f"bucket/requests/{i:05}.json"
            await front.store.create(key, _BODY, metadata={"content-md5": tag})

    asyncio.run(fill())
    ended = 0
    seen = 0

    def done() -> int:
        nonlocal ended, seen
        until = len(front.requests)
        for method, key in front.requests[seen:until]:
            ended += method == "PUT" and key.endswith("/result.json")
        seen = until
        return ended

    with running(front), _aws(front.url):
        yield "s3://bucket", done, lambda: len(front.requests)


@contextlib.contextmanager
def _aws(endpoint: str) -> Iterator[None]:
    """Settings for the server on loopback, and nobody's own ones."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _creates(root: Path) -> list[float]:
    """Creates a second, one after the other, five times."""
    rates = []
    async with open_store(str(root)) as store:
        for turn in range(5):
            began = time.perf_counter()
            for i in range(40):
                await store.create(f"results/{turn}/{i}", _BODY)
            rates.append(40 / (time.perf_counter() - began))
    return rates
