"""What a queue costs: a real worker whose renderer draws nothing, on S3 with SQS.

The S3 server is the tests' own; the SQS server is moto's, in a process of its own, and slow: the
rate is as much its as ours, so the queue's calls a request are printed too, which are exact.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from tests.benchmarks.protocol import s3_on_loopback
from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parents[2]
_MANIFEST = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": 1}


def measure(place: Path, table: Table, quick: bool) -> None:
    """Calls of the queue and requests a second under load; the delay of a send on an idle worker."""
    count, sends = (200, 3) if quick else (2000, 20)
    table.head("A queue: S3 and SQS on loopback", "null renderer, one 64 x 64 image a message, one worker")
    with s3_on_loopback(place / "s3", 0) as (url, done, _), sqs_on_loopback() as (client, queue):
        for start in range(0, count, 10):
            _send(client, queue, [f"load-{i}" for i in range(start, min(start + 10, count))])
        log = place / "queue.log"
        with _worker(url, queue, log) as process:
            _until(done, 50)
            first, began = done(), time.perf_counter()
            _until(done, count - 50)
            last, ended = done(), time.perf_counter()
            _until(done, count)
            delays = [_delay(client, queue, done, count + i) for i in range(sends)]
            process.terminate()
            process.wait(60)
    table.add(Row("requests a second", [(last - first) / (ended - began)], unit="1/s"))
    left = re.search(r"queues closed.* messages=(\d+) calls=(\d+)", log.read_text())
    assert left is not None, log.read_text()[-2000:]
    messages, calls = int(left[1]) - sends, int(left[2]) - 3 * sends  # a lone message: two receives, a delete
    table.add(Row("receives and deletes a request, under load", [calls / messages], "aim at most 0.25"))
    table.add(Row("from a send to the result, idle worker", [d * 1000 for d in delays], unit="ms"))


def _delay(client: Any, queue: str, done: Callable[[], int], before: int) -> float:
    time.sleep(0.5)
    began = time.perf_counter()
    _send(client, queue, [f"lone-{secrets.token_hex(4)}"])
    _until(done, before + 1)
    return time.perf_counter() - began


def _send(client: Any, queue: str, ids: list[str]) -> None:
    entries = [{"Id": str(n), "MessageBody": json.dumps({**_MANIFEST, "id": id})} for n, id in enumerate(ids)]
    client.send_message_batch(QueueUrl=queue, Entries=entries)


def _until(done: Callable[[], int], count: int, patience: float = 300) -> None:
    ends = time.monotonic() + patience
    while done() < count:
        if time.monotonic() > ends:
            raise RuntimeError(f"only {done()} of {count} results after {patience:.0f} s")
        time.sleep(0.005)


@contextlib.contextmanager
def _worker(url: str, queue: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "consumer", "--store", url, "--queue", queue, "--renderer", "null"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with log.open("w") as lines:
        process = subprocess.Popen(command, env=environment, stderr=lines)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def sqs_on_loopback() -> Iterator[tuple[Any, str]]:
    """A client of a fresh SQS server, and a queue's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = os.environ["AWS_ENDPOINT_URL_SQS"] = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        client = boto3.client("sqs", endpoint_url=endpoint, region_name="us-east-1")
        yield client, client.create_queue(QueueName="bench")["QueueUrl"]
    finally:
        del os.environ["AWS_ENDPOINT_URL_SQS"]
        server.kill()
        server.wait()
