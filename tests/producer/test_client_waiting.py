"""Waiting for results: they come as they end, and a wait ends in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from producer import AsyncClient, StillWorking
from schemas.errors import StoreUnavailable
from tests.servers.s3_front import Fault, S3Front

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat"}
Worker = Callable[..., Any]


async def test_waiting_ends_in_time_and_loses_nothing(home: AsyncClient, worker: Worker):
    """A time-out says so, and the same wait succeeds later."""
    ticket = await home.submit(CAT)
    with pytest.raises(StillWorking, match=r"not finished after 0\.05 s") as caught:
        await home.wait(ticket, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(StillWorking):
        await home.fetch(ticket)
    await worker(home.store, ticket.key)
    assert (await home.wait(ticket, timeout=120)).status == "succeeded"
    assert (await home.wait(ticket, timeout=0)).status == "succeeded"


async def test_results_come_in_the_order_in_which_they_end(client: AsyncClient, worker: Worker):
    """Those who wait share a few looks at the store, and each result comes once."""
    tickets = [await client.submit(CAT, id=f"r{k}") for k in range(12)]
    await worker(client.store, tickets[7].key)
    seen = []
    async for result in client.results(tickets, timeout=120):
        if not seen:
            for ticket in reversed(tickets):
                if ticket.id != "r7":
                    await worker(client.store, ticket.key)
        seen.append(result.id)
    assert seen[0] == "r7"
    assert sorted(seen) == sorted(t.id for t in tickets)


async def test_results_say_which_requests_are_late(home: AsyncClient, worker: Worker):
    """After the time-out the error names those that have not ended."""
    tickets = [await home.submit(CAT, id=id) for id in ("a", "b")]
    await worker(home.store, tickets[0].key)
    results = home.results(tickets, timeout=1.5)
    assert (await anext(results)).id == "a"
    with pytest.raises(StillWorking) as caught:
        await anext(results)
    assert caught.value.ids == ("b",)


async def test_a_ticket_finds_its_result_beside_another_bodys(home: AsyncClient, worker: Worker):
    """Where another body took the id first, a ticket waits for `id~hash`; an id takes what is there."""
    ticket = await home.submit(CAT, id="tom")
    other = f"tom~{ticket.fingerprint[:8]}"
    await home.store.create("requests/other.json", b'{"prompt": "a dog"}')
    await worker(home.store, "requests/other.json", id="tom")
    await worker(home.store, ticket.key, id=other)
    assert (await home.wait(ticket, timeout=120)).id == other
    assert (await home.wait("tom", timeout=120)).id == "tom"


async def test_a_store_that_fails_tells_the_waiters(s3_front: S3Front):
    """A store that refuses is an error with its reason, not a hang."""
    s3_front.faults.append(Fault("denied", method="HEAD", times=1000))
    async with AsyncClient("s3://bucket") as client:
        with pytest.raises(StoreUnavailable, match="denied"):
            await client.wait("tom", timeout=120)
