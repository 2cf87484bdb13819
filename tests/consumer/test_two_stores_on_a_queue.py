"""Two stores in one bucket, by prefixes, whose workers share a queue: each message reaches its own store's worker."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from consumer.worker import Worker
from infra.queues.leases import MessageLeases
from infra.queues.sqs import Queue
from infra.stores.open import open_store
from tests.cloud import Cloud
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat", "steps": 1, "seed": 3, "width": 8, "height": 8}


@pytest.fixture
def cloud(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    made = Cloud(moto_url)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


@asynccontextmanager
async def serving(cloud: Cloud, url: str) -> AsyncIterator[Callable[[str], AsyncIterator[Worker]]]:
    """Start a worker on a prefix; its listing is too slow to find anything here."""
    async with AsyncExitStack() as stack:

        async def start(prefix: str) -> Worker:
            store = await stack.enter_async_context(open_store(f"{cloud.store}/{prefix}".rstrip("/")))
            queue = await stack.enter_async_context(Queue(url))
            leases = MessageLeases(queue, time.monotonic, random.Random(1))
            worker = make_worker(store, queues=[leases], reconcile=10_000.0)
            worker.claims.session = prefix.replace("/", "-") or "whole"
            return await stack.enter_async_context(running(worker))

        yield start  # type: ignore[misc]


def announce(cloud: Cloud, url: str, *keys: str) -> None:
    """Put requests, and send one event that tells of all of them."""
    records: list[dict[str, Any]] = []
    for key in keys:
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=json.dumps(CAT).encode())
        s3 = {"bucket": {"name": cloud.bucket}, "object": {"key": key}}
        records.append({"eventVersion": "2.1", "eventName": "ObjectCreated:Put", "s3": s3})
    cloud.sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"Records": records}))


@pytest.mark.parametrize("prefixes", [("one", "two"), ("", "two"), ("deep/one", "deep/one/two")])
async def test_a_message_about_another_store_is_left_to_its_worker(
    cloud: Cloud, prefixes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    """The other store's worker comes when the first one has seen every message.

    Which of two workers gets a message next is up to the queue, so here it may be received any number of times
    until the results are there.
    """
    monkeypatch.setattr("consumer.intake.queue_items._FOR_ITS_OWNER", 0.05)
    monkeypatch.setattr("consumer.intake.queue_items._LOOKS_FOR_OWNER", 10_000)
    url = cloud.queue()
    roots = [f"{prefix}/".lstrip("/") for prefix in prefixes]
    async with serving(cloud, url) as start:
        first = await start(prefixes[0])  # type: ignore[misc]
        announce(cloud, url, f"{roots[1]}requests/a.json")
        announce(cloud, url, f"{roots[0]}requests/b.json", f"{roots[1]}requests/express/c.json")
        assert first._reader is not None
        await until(lambda: first._reader.received >= 2)
        await start(prefixes[1])  # type: ignore[misc]
        for root, id in zip((roots[1], roots[0], roots[1]), "abc", strict=True):
            await until(lambda key=f"{root}results/{id}/result.json": cloud.keys(key))
        monkeypatch.setattr("consumer.intake.queue_items._LOOKS_FOR_OWNER", 0)
        await until(lambda: cloud.depth(url) == 0)


async def test_a_message_about_a_store_that_nobody_serves_is_dropped_after_a_while(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
):
    """It does not go round for ever, nor to the dead-letter queue; results of our own are never such."""
    monkeypatch.setattr("consumer.intake.queue_items._FOR_ITS_OWNER", 0.02)
    url, dead = cloud.pair()
    async with serving(cloud, url) as start:
        worker = await start("one")  # type: ignore[misc]
        assert worker._reader is not None
        announce(cloud, url, "one/results/requests/a/result.json")
        await until(lambda: worker._reader._items.dropped["not a request"] == 1)
        assert worker._reader.received == 1
        announce(cloud, url, "nobody/requests/a.json")
        await until(lambda: worker._reader._items.dropped["not a request"] == 2)
        await until(lambda: cloud.depth(url) == 0)
    assert 3 < worker._reader.received <= 10
    assert cloud.depth(dead) == 0
    assert cloud.keys("nobody/") == ["nobody/requests/a.json"]
