"""Canceling: whoever creates the result first decides how a request ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.claims.claim import answers
from producer import AsyncClient, UnknownRequest
from schemas.layout import fingerprint
from schemas.limits import Limits
from tests.producer.claiming import claim

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat"}
Worker = Callable[..., Any]


async def test_cancel_wins_or_says_what_was_first(client: AsyncClient, worker: Worker):
    """A waiting request ends as canceled, with its bytes; one that has ended keeps its result."""
    ticket = await client.submit(CAT)
    state = await client.cancel(ticket)
    assert state.result is not None
    assert (state.status, state.result.fingerprint) == ("canceled", ticket.fingerprint)
    assert state.result.request.body() == b'{"prompt": "a cat"}'
    assert await client.store.head(ticket.key) is None

    done = await client.submit(CAT)
    await worker(client.store, done.key)
    assert (await client.cancel(done)).status == "succeeded"


async def test_a_request_that_is_being_drawn_can_be_cancelled(home: AsyncClient):
    """The frozen request comes from the claim when the request object is gone."""
    await claim(home, "tom", b'{"prompt": "a cat"}')
    state = await home.cancel("tom")
    assert state.result is not None
    assert state.result.request.body() == b'{"prompt": "a cat"}'


@pytest.mark.parametrize("claimed", [b"", b'{"v": 99}'])
async def test_a_request_whose_claim_cannot_be_read_can_be_cancelled(home: AsyncClient, claimed: bytes):
    """It ended with an error. The result answers every body of the id, and says that the request is not kept."""
    await home.store.create("claims/tom/000001", claimed)
    await home.store.create("claims/tom/row/000001", claimed)
    state = await home.cancel("tom")
    assert state.result is not None
    assert state.result.failure is not None
    assert state.status == "canceled"
    assert "claim cannot be read" in state.result.failure.message
    assert answers(state.result.fingerprint, "of any body")
    assert (await home.status("tom/row")).status == "canceled"

    await home.store.create("claims/ben/000001", claimed)
    ticket = await home.submit(CAT, id="ben-2")
    await home.store.create("requests/ben.json", b'{"prompt": "a cat"}')
    state = await home.cancel("ben")
    assert state.result is not None
    assert state.result.request.body() == b'{"prompt": "a cat"}'
    assert await home.store.head("requests/ben.json") is None
    assert await home.store.head(ticket.key) is not None


async def test_a_cancel_that_came_too_late_removes_nothing(
    home: AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    """Whoever was first with the result tidies up; another body under the same name is another request."""
    ticket = await home.submit(CAT, id="tom")
    real = home.store.create

    async def late(key: str, body: bytes, **rest: Any) -> bool:
        await real(key, b'{"v": 1}', **rest)  # somebody else's result, a moment before ours
        return await real(key, body, **rest)

    monkeypatch.setattr(home.store, "create", late)
    stands = (await home.cancel("tom")).result  # it cannot be read, and stands
    assert stands is not None
    assert stands.failure is not None
    assert "cannot be read" in stands.failure.message
    assert await home.store.head(ticket.key) is not None

    monkeypatch.undo()
    await claim(home, "ben", b'{"prompt": "a cat"}')
    await home.store.create("requests/ben.json", b'{"prompt": "another cat"}')
    state = await home.cancel("ben")
    assert state.result is not None
    assert state.result.request.body() == b'{"prompt": "a cat"}'
    assert (await home.store.get("requests/ben.json")).body == b'{"prompt": "another cat"}'


async def test_a_canceled_request_that_is_too_large_ends_no_other_one(home: AsyncClient):
    """Its result answers that object, and not whatever comes under its name."""
    small = AsyncClient(home.store, limits=Limits(max_body_bytes=100))
    await home.store.create("requests/big.json", b'{"prompt": "%s"}' % (b"x" * 200))
    state = await small.cancel("big")
    assert state.result is not None
    assert not answers(state.result.fingerprint, fingerprint(b'{"prompt": "a cat"}'))
    assert await home.store.head("requests/big.json") is None


async def test_cancelling_a_batch_cancels_its_rows(home: AsyncClient):
    """Rows that wait or are being drawn end, too; a folder of the same name is not a batch."""
    await home.submit_batch(b'{"prompt": "a", "custom_id": "x"}', id="many")
    await home.store.create("requests/many/x.json", b'{"prompt": "a"}')
    await claim(home, "many/y", b'{"prompt": "b"}')
    await home.cancel("many")
    assert [(await home.status(f"many/{row}")).status for row in "xy"] == ["canceled", "canceled"]

    await home.submit_batch(b'{"prompt": "a", "custom_id": "x"}', id="more")
    state = await home.cancel("more/x")  # before its object exists: its body stands in the batch
    assert state.result is not None
    assert state.result.request.body() == b'{"prompt": "a"}'
    assert state.result.fingerprint == fingerprint(state.result.request.body())
    with pytest.raises(UnknownRequest):
        await home.cancel("more/no-such-row")

    await home.submit(CAT, id="cats")
    await home.submit(CAT, id="cats/tom")
    await home.cancel("cats")
    assert (await home.status("cats/tom")).status == "queued"
