"""The express lane: whatever waits in the other one, an express request is found, claimed and drawn first."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from consumer.intake.queue_shares import QueueShares
from consumer.renderer.protocol import Drawn
from infra.queues.leases import MessageLeases
from infra.queues.sqs import Queue
from infra.stores.memory import MemoryStore
from infra.stores.store import Info
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio

DOT: dict[str, Any] = {"prompt": "a dot", "steps": 2, "width": 8, "height": 8}


async def drop(store: MemoryStore, key: str, **fields: Any) -> None:
    await store.create(f"requests/{key}.json", json.dumps(DOT | fields).encode())


class Endless(MemoryStore):
    """A store in which a listing of the inbox shows 64 requests and does not end before it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.pages = 0

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        async for info in super().list(prefix, start_after=start_after):
            yield info
        if prefix == "requests/":
            self.pages += 1
            await self.go_on.wait()


async def test_it_is_looked_at_while_the_listing_of_the_other_lane_goes_on():
    """Not a page of that listing comes between the drop and the claim: it hangs until the request has ended."""
    store = Endless()
    async with running(make_worker(store)) as worker:
        await until(lambda: store.pages)
        for number in range(3):
            await drop(store, f"express/e{number}")
        for number in range(3):
            while await store.head(f"results/e{number}/result.json") is None:
                await asyncio.sleep(0.01)
        assert store.pages == 1
        store.go_on.set()
        await until(lambda: not worker.jobs.active)


async def test_a_full_worker_takes_it_and_hands_it_over_at_once():
    """The reserve: the renderer holds all it may of the other lane, and draws none of it to its end."""
    store = MemoryStore()
    for number in range(20):
        await drop(store, f"s{number:02}", steps=150)
    async with running(make_worker(store, ahead=8, null={"seconds_per_step": 1.0}, grace=0.1)) as worker:
        (renderer,) = worker.renderers
        await until(lambda: renderer.pending == 8)
        for number in range(4):
            await drop(store, f"express/e{number}", steps=150)
        await until(lambda: renderer.pending_of(True) == 2)
        assert sorted(id[0] for id in worker.jobs.active) == ["e", "e", *"s" * 8]
        assert renderer.pending == 10
        assert (worker.jobs.room(express=True), worker.jobs.room()) == (0, -2)


async def test_express_requests_leave_the_other_lane_its_reserve():
    """Full of express requests, a worker still takes the others, up to a quarter of what it may hold."""
    store = MemoryStore()
    for number in range(20):
        await drop(store, f"express/e{number:02}", steps=150)
    async with running(make_worker(store, ahead=8, null={"seconds_per_step": 1.0}, grace=0.1)) as worker:
        (renderer,) = worker.renderers
        await until(lambda: renderer.pending == 8)
        for number in range(4):
            await drop(store, f"s{number}", steps=150)
        await until(lambda: renderer.pending_of(False) == 2)
        assert renderer.pending == 10


async def test_it_is_drawn_before_what_has_not_begun(tmp_path: Path):
    """At most two others end between its drop and its end: the one in progress, and one that just began."""
    store, diary = MemoryStore(), tmp_path / "diary"
    diary.touch()
    for number in range(30):
        await drop(store, f"s{number:02}", steps=20)
    null = {"seconds_per_step": 0.05, "diary": str(diary)}
    async with running(make_worker(store, ahead=16, null=null, grace=0.1)) as worker:
        (renderer,) = worker.renderers
        await until(lambda: renderer.pending == 16 and diary.read_text())
        await drop(store, "express/now", steps=1)
        await until(lambda: renderer.pending_of(True))
        before = len(diary.read_text().splitlines())
        await until(lambda: "now 0" in diary.read_text())
    assert diary.read_text().splitlines().index("now 0") - before <= 2


async def test_between_requests_that_are_drawn_alone_express_has_its_turn(tmp_path: Path):
    """After a renderer was lost each of its requests is drawn alone; an express one waits for one of them."""
    store, diary = MemoryStore(), tmp_path / "diary"
    diary.touch()
    for number in range(8):
        await drop(store, f"s{number}", steps=10)
    null = {"seconds_per_step": 0.05, "diary": str(diary)}
    async with running(make_worker(store, ahead=8, null=null, grace=0.1)) as worker:
        (renderer,) = worker.renderers
        await until(lambda: renderer.pending == 8)
        assert renderer._process is not None
        renderer._process.kill()
        await until(lambda: any(job.suspect for job in worker.jobs.active.values()) and renderer.pending == 1)
        await drop(store, "express/now", steps=1)
        await until(lambda: "now" in worker.jobs.active)
        before = len(diary.read_text().splitlines())
        await until(lambda: "now 0" in diary.read_text())
    assert diary.read_text().splitlines().index("now 0") - before <= 2


# With queues -----------------------------------------------------------------------------------


@pytest.fixture
def sqs(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"ENDPOINT_URL_SQS": moto_url, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return boto3.client("sqs", region_name="us-east-1")


async def test_with_a_queue_too_it_does_not_wait_for_its_message(sqs: Any):
    """Its message may be behind thousands of others. What else lies in the inbox waits for its message."""
    url = sqs.create_queue(QueueName=secrets.token_hex(6))["QueueUrl"]
    store = MemoryStore()
    async with Queue(url) as queue:
        leases = MessageLeases(queue, time.monotonic, random.Random(1))
        async with running(make_worker(store, queues=[leases], reconcile=3600.0)) as worker:
            await until(lambda: any(renderer.ready for renderer in worker.renderers))
            await drop(store, "other")
            await drop(store, "express/now")
            while await store.head("results/now/result.json") is None:
                await asyncio.sleep(0.02)
            assert await store.head("requests/other.json")


async def test_the_lane_of_a_message_is_in_its_claim(sqs: Any):
    """So whoever takes it over knows it."""
    urls = [sqs.create_queue(QueueName=secrets.token_hex(6))["QueueUrl"] for _ in range(2)]
    for number, url in enumerate(urls):
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps(DOT | {"id": f"q{number}", "steps": 150}))
    store = MemoryStore()
    async with Queue(urls[0]) as first, Queue(urls[1]) as second:
        queues = [MessageLeases(queue, time.monotonic, random.Random(1)) for queue in (first, second)]
        worker = make_worker(store, queues=queues, null={"seconds_per_step": 1.0}, grace=0.1)
        async with running(worker):
            await until(lambda: len(worker.jobs.active) == 2)
            claims = [json.loads((await store.get(f"claims/q{n}/000001")).body) for n in range(2)]
    assert [claim["express"] for claim in claims] == [True, False]


@pytest.mark.parametrize(
    ("number", "room", "in_hand", "full", "share"),
    [
        (0, 8, (0, 32), True, 8),  # the reserve, at once
        (0, 1, (7, 32), True, 1),  # not batched: somebody waits
        (1, 1, (0, 31), True, 0),  # batched: another worker may be idle
        (1, 40, (24, 0), False, 8),  # a quarter while the express queue has messages
        (0, 40, (24, 8), False, 0),
    ],
)
def test_shares_of_two_queues(number: int, room: int, in_hand: tuple[int, int], full: bool, share: int):
    """The express queue has three quarters, and is not made to wait for a full receive."""
    queues: Any = [SimpleNamespace(in_hand=range(count)) for count in in_hand]
    shares = QueueShares(queues, 32)
    shares.empty = [False, False]
    assert shares.share(number, lambda _express: room, full=full) == share


# In the engine ---------------------------------------------------------------------------------


def steps_of_others(stage: Any, express: Any, others: list[Any]) -> int:
    """UNet steps that others did between the submission of an express image and its end."""
    engine = stage.engine
    for one in others:
        engine.submit(one)
    for _ in range(8):
        engine.step()
    before = sum(image.unet_calls for image in engine._in_flight)
    engine.submit(express)
    while (express.request, 0) not in stage.ended():
        engine.step()
    return sum(image.unet_calls for image in engine._in_flight) - before


@pytest.mark.parametrize("exact", [False, True])
def test_an_express_picture_is_the_same_as_alone(exact: bool, registry, studio, task, alone, apart):
    """It and those that it overtakes; in exact mode byte for byte."""
    others = [task(f"s{i}", steps=6, seed=i) for i in range(5)]
    express = task("now", steps=4, seed=9, express=True)
    stage = studio(registry, exact=exact, max_rows=6)
    steps_of_others(stage, express, others)
    ended = stage.draw()
    for one in [*others, express]:
        drawn = ended[one.request, 0]
        assert isinstance(drawn, Drawn)
        if exact:
            (twin,) = studio(registry, exact=True, max_rows=6).draw(one).values()
            assert drawn.picture.data == twin.picture.data
        else:
            assert apart(drawn.picture, alone(registry, one)) <= 1


def test_an_express_image_overtakes_those_that_have_begun(registry, studio, task):
    """By a clock that counts calls: four images of fifty steps go on at a third of its pace."""
    ticks = iter(range(10**9))
    stage = studio(registry, max_rows=8, clock=lambda: float(next(ticks)))
    others = [task(f"s{i}", steps=50, seed=i) for i in range(4)]
    done = steps_of_others(stage, task("now", steps=12, express=True), others)
    assert 0 < done <= 4 * 6
    assert all(isinstance(one, Drawn) for one in stage.draw().values())
