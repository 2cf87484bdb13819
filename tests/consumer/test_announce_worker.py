"""A worker and its announcer, joined: what a receiver hears is what lies in the store."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import time
from pathlib import Path

import pytest

from consumer.announce.announcer import Announcer, RetryPolicy
from consumer.announce.targets import targets
from consumer.jobs.inputs import Inputs
from consumer.renderer.protocol import RendererSettings
from consumer.worker import Worker, WorkerSettings
from infra.claims.claims import Claims, Timing
from infra.models.cards import Cards
from infra.stores.open import open_store
from infra.stores.store import Store
from schemas.limits import Limits
from tests.servers.webhook_receiver import Receiver, receiving
from tests.worker_process import drop, files

pytestmark = pytest.mark.anyio

TIMING = Timing(beat=0.3, lease=1.0, sweep=(0.2, 0.4))
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


def joined(store: Store, receiver: Receiver) -> tuple[Worker, Announcer]:
    """A worker with the null renderer whose results are announced to the receiver."""
    rng = random.Random(1)
    receivers = targets([receiver.url], secrets=SECRET, hosts=f"127.0.0.1:{receiver.port}", now=time.time)
    reader = Claims(store, session="reader", clock=time.monotonic, rng=rng)
    announcer = Announcer(
        receivers,
        reader.result,
        time.monotonic,
        rng,
        session="w1",
        policy=RetryPolicy(first=0.01, longest=0.1),
    )
    claims = Claims(
        store, session="w1", clock=time.monotonic, rng=rng, timing=TIMING, may_forget=announcer.may_forget
    )
    worker = Worker(
        store=store,
        claims=claims,
        renderers=[RendererSettings(kind="null")],
        cards=Cards.of([]),
        settings=WorkerSettings(timing=TIMING, grace=5.0),
        inputs=Inputs(store, Limits(), ("uploads/",)),
        clock=time.monotonic,
        rng=rng,
        versions={},
    )
    return worker, announcer


async def test_every_end_is_heard_and_is_as_it_says(tmp_path: Path):
    """A request, a batch with its rows and a refusal, to a receiver that fails at first; then all is tidy."""
    drop(
        tmp_path,
        "cat.json",
        {"prompt": "a secret cat", "steps": 1, "number_of_images": 2, "metadata": {"n": 1}},
    )
    drop(tmp_path, "broken.json", b'{"prompt": ')
    rows = [{"custom_id": f"row-{i}", "prompt": "x", "steps": 1} for i in range(3)]
    drop(tmp_path, "many.jsonl", "\n".join(map(json.dumps, rows)).encode())
    everything = {"cat", "broken", "many", "many/row-0", "many/row-1", "many/row-2"}
    async with open_store(str(tmp_path)) as store, receiving() as receiver:
        receiver.answers.extend([500, "cut", 503, 500])
        worker, announcer = joined(store, receiver)
        await asyncio.gather(*(renderer.start() for renderer in worker.renderers))
        works, announces = asyncio.create_task(worker.run()), asyncio.create_task(announcer.run())
        try:
            async with asyncio.timeout(120):
                while {got.event["subject"] for got in receiver.received} != everything or left(tmp_path):
                    await asyncio.sleep(0.02)
        finally:
            worker.stop.set()
            await works
            await announcer.drain(1.0)
            announces.cancel()
            await asyncio.gather(announces, return_exceptions=True)
            await announcer.close()
            await asyncio.gather(*(renderer.close() for renderer in worker.renderers))

    heard = {got.event["subject"]: got.event for got in receiver.received}
    assert len({got.headers["webhook-id"] for got in receiver.received}) == len(everything)
    assert len(receiver.received) <= len(everything) + 4  # only failures are repeated
    for id, event in heard.items():
        stored = json.loads((tmp_path / event["data"]["result"]).read_bytes())
        assert (stored["id"], stored["status"]) == (id, event["data"]["status"])
        assert event["type"] == f"dreamdrop.request.{stored['status']}"
        for image in event["data"]["images"]:
            assert hashlib.sha256((tmp_path / image["key"]).read_bytes()).hexdigest() == image["sha256"]
    assert len(heard["cat"]["data"]["images"]) == 2
    assert heard["cat"]["data"]["metadata"] == {"n": 1}
    assert heard["broken"]["data"]["failure"]["code"] == "invalid_json"
    assert heard["many"]["data"]["batch"]["counts"]["succeeded"] == 3
    assert not any(b"secret cat" in got.body for got in receiver.received)


def left(store: Path) -> bool:
    """Whether a request or a claim is still there."""
    return bool(files(store / "requests") or files(store / "claims"))
