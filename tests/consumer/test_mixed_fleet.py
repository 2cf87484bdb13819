"""Workers of one store that differ: what one cannot draw is left to the one that can."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

import pytest

import consumer.intake.fleet as fleet
from consumer.intake.fleet import Capabilities
from infra.claims.claims import Claims
from infra.models.cards import BUILT_IN, Cards
from infra.stores.memory import MemoryStore
from producer import AsyncClient
from schemas.errors import Rejected
from schemas.limits import Limits
from tests.worker_inside import TIMING, make_worker, running

pytestmark = pytest.mark.anyio

CAT: dict[str, Any] = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}
MINE = Cards({card.name: card for card in (*BUILT_IN, replace(BUILT_IN[0], name="mine"))})


@pytest.mark.parametrize(
    ("changes", "able"),
    [
        ({"model": "mine"}, {"cards": MINE}),
        ({"steps": 400}, {"limits": Limits(max_steps=500)}),
        ({"number_of_images": 70}, {"limits": Limits(max_images=80)}),
        ({"width": 1032, "height": 1032}, {"limits": Limits(max_native_areas=66)}),
        ({"prompt": "a red circle" + " " * 9000}, {"limits": Limits(max_prompt_chars=10_000)}),
    ],
    ids=["model", "steps", "images", "size", "prompt"],
)
async def test_what_one_worker_can_draw_no_other_refuses(changes: dict[str, Any], able: dict[str, Any]):
    """Five plain workers look at the request first; the only able one draws it."""
    store = MemoryStore()
    async with AsyncExitStack() as stack:
        workers = [make_worker(store, **able)] + [make_worker(store) for _ in range(5)]
        for number, worker in enumerate(workers):
            worker.claims.session = f"w{number}"  # of one process, as `make_worker` names them all alike
        for worker in workers:
            await stack.enter_async_context(running(worker))
        client = await stack.enter_async_context(AsyncClient(store, limits=Limits(**asdict(Limits()))))
        for number in range(6):
            await store.create(f"requests/r{number}.json", json.dumps(CAT | changes).encode())
        ended = [await client.wait(f"r{number}", timeout=60) for number in range(6)]

    assert [(result.status, result.worker) for result in ended] == [("succeeded", "w0")] * 6


async def test_what_no_live_worker_can_draw_is_refused_at_once():
    """A typo in the model's name is answered, whoever else is there."""
    store = MemoryStore()
    async with running(make_worker(store, cards=MINE)), AsyncClient(store) as client:
        await store.create("requests/typo.json", json.dumps(CAT | {"model": "mime"}).encode())
        ended = await client.wait("typo", timeout=30)

    assert ended.failure is not None
    assert ended.failure.code == "unknown_model"


async def test_a_request_is_left_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch):
    """A worker that announces the model and never takes the request delays the answer, and no more."""
    monkeypatch.setattr(fleet, "PATIENCE", 1.5)
    store = MemoryStore()
    facts = Capabilities.own(["mine"], (), Limits()).facts()
    other = Claims(store, session="idle", clock=time.monotonic, rng=random.Random(1), timing=TIMING)
    await other.beat(facts)
    await store.create("requests/cat.json", json.dumps(CAT | {"model": "mine"}).encode())
    async with running(make_worker(store)), AsyncClient(store) as client:
        await asyncio.sleep(0.8)
        assert await store.head("requests/cat.json")
        for _ in range(40):
            await other.beat(facts)
            if await store.head("results/cat/result.json"):
                break
            await asyncio.sleep(0.3)
        ended = await client.wait("cat", timeout=30)

    assert ended.failure is not None
    assert ended.failure.code == "unknown_model"


async def test_a_dead_workers_claim_waits_for_a_worker_with_its_model():
    """The plain worker does not take over what it cannot draw; the returning one does."""
    store = MemoryStore()
    await store.create(
        "requests/cat.json", json.dumps(CAT | {"model": "mine", "number_of_images": 3}).encode()
    )
    dead = make_worker(store, cards=MINE)
    dead.claims.session = "dead"
    info = await store.head("requests/cat.json")
    assert info is not None
    await dead._inbox.claimer.claim_object(info)
    async with running(make_worker(store)), AsyncClient(store) as client:
        await asyncio.sleep(TIMING.lease + 2)
        assert await store.head("results/cat/result.json") is None
        back = make_worker(store, cards=MINE)
        back.claims.session = "back"
        async with running(back):
            ended = await client.wait("cat", timeout=30)

    assert (ended.status, ended.worker) == ("succeeded", "back")


@pytest.mark.parametrize(
    ("field", "later", "able"),
    [
        ("output.format", "output.format=avif", True),
        ("loras.3.blend", "loras.blend", True),
        ("output.format", "output.quality=best", False),
        ("prompt", "prompts", False),
    ],
)
def test_what_a_newer_worker_says_of_inner_fields_and_values(field: str, later: str, able: bool):
    """A value or an inner field that only a newer worker announces is left to it."""
    own = Capabilities.own((), (), Limits())
    newer = Capabilities.read({**own.facts(), "fields": [*own.fields, later]})
    error = Rejected.of_field(field, "is an unknown field")
    assert newer.can_draw(error, b"{}", 2, batch=False, refused_by=own) is able
    assert not own.can_draw(error, b"{}", 2, batch=False, refused_by=newer)
