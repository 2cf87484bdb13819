"""A client and a store, and nobody between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.claims.claim import Claim, answers
from producer import AsyncClient, Client, Conflict, StillWorking, UnknownRequest
from producer.errors import Damaged
from producer.requests import fresh_id
from schemas.errors import Rejected, StoreUnavailable
from schemas.layout import (
    claim_key,
    fingerprint,
    is_id,
    request_key,
    result_key,
    status_key,
    worker_key,
)
from schemas.limits import Limits
from schemas.manifest import Text2Img
from schemas.result import Frozen, Progress
from tests.servers.s3_front import Fault, S3Front

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat"}
Worker = Callable[..., Any]


async def claim(client: AsyncClient, id: str, body: bytes, **fields: Any) -> None:
    held = Claim(
        id=id,
        fingerprint=fingerprint(body),
        frozen=Frozen.of(body),
        plan=None,
        session="w",
        nonce="n",
        epoch=1,
        attempt=1,
        **fields,
    )
    assert await client.store.create(claim_key(id, 1), held.body())


async def test_a_request_is_dropped_and_its_pictures_come_back(
    client: AsyncClient, worker: Worker, tmp_path: Path
):
    """Submit, wait, fetch and open, on every kind of store."""
    ticket = await client.submit(CAT | {"number_of_images": 2})
    assert (await client.store.get(ticket.key)).body == b'{"prompt": "a cat", "number_of_images": 2}'
    assert (await client.status(ticket)).status == "queued"
    waiting = asyncio.create_task(client.wait(ticket, timeout=30))
    await worker(client.store, ticket.key)

    assert (await waiting).status == "succeeded"
    assert (await client.status(ticket.id)).over
    paths = await client.fetch(ticket, tmp_path / "out")
    assert paths == [tmp_path / "out" / ticket.id / name for name in ("0.png", "1.png")]
    assert [picture.size for picture in await client.images(ticket)] == [(8, 8), (8, 8)]


async def test_fresh_ids_are_ids_and_sort_by_age():
    """An id made later sorts later, and two made at once differ."""
    ids = [fresh_id() for _ in range(100)]
    assert all(is_id(id) and id == id.lower() for id in ids)
    assert len(set(ids)) == 100
    assert sorted(id[:9] for id in ids) == [id[:9] for id in ids]


async def test_every_form_of_a_request_is_taken(home: AsyncClient, tmp_path: Path):
    """A document, a model, bytes and a file say the same; a file's bytes stay as they are."""
    file = tmp_path / "cat.json"
    file.write_text('{ "prompt":\n "a cat" }')
    for request in (CAT, Text2Img(prompt="a cat"), b'{"prompt": "a cat"}'):
        ticket = await home.submit(request)
        assert (await home.store.get(ticket.key)).body == b'{"prompt": "a cat"}'
    for path in (file, str(file)):
        assert (await home.store.get((await home.submit(path)).key)).body == file.read_bytes()


async def test_the_manifests_own_id_names_the_request(home: AsyncClient):
    """The `id` in the body is used, also in the express lane; another one beside it is refused."""
    ticket = await home.submit(CAT | {"id": "tom"})
    assert (ticket.id, ticket.key) == ("tom", "requests/tom.json")
    with pytest.raises(Conflict, match="names itself 'tom'"):
        await home.submit(CAT | {"id": "tom"}, id="jerry")
    fast = await home.submit(CAT, id="fast", express=True)
    assert (fast.id, fast.key) == ("fast", "requests/express/fast.json")


async def test_nothing_is_sent_that_can_never_succeed(home: AsyncClient):
    """A bad manifest, batch row, path or id is refused in the worker's words."""
    for request, text in (
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x", "stepps": 3}, "did you mean 'steps'"),
        ({"prompt": "x", "seed": object()}, "cannot be written as JSON"),
        (b'{"prompt": }', "line 1, column 12"),
        ("nowhere.json", "cannot read 'nowhere.json'"),
    ):
        with pytest.raises(Rejected, match=text):
            await home.submit(request)
    for id in ("../x", "a//b", ".hidden", "a b", "x" * 101, "é"):
        with pytest.raises(Rejected, match="id "):
            await home.submit(CAT, id=id)
    with pytest.raises(Rejected, match="line 3: steps is 0") as caught:
        await home.submit_batch(b'{"prompt": "a"}\n\n{"prompt": "b", "steps": 0}\n')
    assert caught.value.line == 3
    assert [info async for info in home.store.list("requests/")] == []


async def test_the_same_request_under_the_same_id_is_the_same_request(client: AsyncClient, worker: Worker):
    """Waiting, being drawn or over: submitting it again changes nothing; another body is refused."""
    for again in range(2):
        assert (await client.submit(CAT, id="tom")).id == "tom", again
    with pytest.raises(Conflict, match="waiting to be drawn"):
        await client.submit({"prompt": "a dog"}, id="tom")

    body = (await client.store.get(request_key("tom"))).body
    await claim(client, "tom", body)
    await client.store.delete(request_key("tom"))
    assert (await client.submit(CAT, id="tom")).id == "tom"
    with pytest.raises(Conflict, match="being drawn"):
        await client.submit({"prompt": "a dog"}, id="tom")
    assert await client.store.head(request_key("tom")) is None

    await client.store.create(request_key("tom"), body)
    await worker(client.store, request_key("tom"))
    await client.store.delete(claim_key("tom", 1))
    assert (await client.submit(CAT, id="tom")).id == "tom"
    with pytest.raises(Conflict, match="succeeded"):
        await client.submit({"prompt": "a dog"}, id="tom")
    assert await client.store.head(request_key("tom")) is None


async def test_status_follows_a_request(home: AsyncClient):
    """Queued with a place in the line, then processing with its steps."""
    first, second = await home.submit(CAT, id="a"), await home.submit(CAT, id="b")
    assert (await home.status(first)).position == 0
    assert (await home.status(second)).position == 1
    await claim(home, "a", b"{}")
    assert (await home.status("a")).status == "processing"
    said = Progress(id="a", steps_done=3, steps_total=20, images_total=1)
    await home.store.put(status_key("a"), said.model_dump_json().encode())
    assert (await home.status("a")).progress == said
    await home.store.put(status_key("a"), b"half a docum")
    assert (await home.status("a")).progress is None


async def test_an_unknown_id_is_told_with_the_nearest_known(home: AsyncClient):
    """A slip of the keyboard gets a suggestion, for status, wait, cancel and fetch."""
    await home.submit(CAT, id="cats/tom")
    for verb in (home.status, home.wait, home.cancel, home.fetch):
        with pytest.raises(UnknownRequest, match="did you mean 'cats/tom'"):
            await verb("cats/tim")


async def test_a_row_is_known_before_it_is_dropped(home: AsyncClient):
    """A row of a waiting batch is queued, although its own object is not there yet."""
    await home.submit_batch(b'{"prompt": "a", "custom_id": "x"}', id="many")
    assert (await home.status("many/x")).status == "queued"


async def test_waiting_ends_in_time_and_loses_nothing(home: AsyncClient, worker: Worker):
    """A time-out says so, and the same wait succeeds later."""
    ticket = await home.submit(CAT)
    with pytest.raises(StillWorking, match=r"not over after 0\.05 s") as caught:
        await home.wait(ticket, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(StillWorking):
        await home.fetch(ticket)
    await worker(home.store, ticket.key)
    assert (await home.wait(ticket, timeout=30)).status == "succeeded"
    assert (await home.wait(ticket, timeout=0)).status == "succeeded"


async def test_results_come_in_the_order_in_which_they_end(client: AsyncClient, worker: Worker):
    """Many waiters share a few looks, and each result comes once."""
    tickets = [await client.submit(CAT, id=f"r{k}") for k in range(12)]
    await worker(client.store, tickets[7].key)
    seen = []
    async for result in client.results(tickets, timeout=30):
        if not seen:
            for ticket in reversed(tickets):
                if ticket.id != "r7":
                    await worker(client.store, ticket.key)
        seen.append(result.id)
    assert seen[0] == "r7"
    assert sorted(seen) == sorted(t.id for t in tickets)


async def test_results_say_which_requests_are_late(home: AsyncClient, worker: Worker):
    """After the time-out the error names those that are not over."""
    tickets = [await home.submit(CAT, id=id) for id in ("a", "b")]
    await worker(home.store, tickets[0].key)
    results = home.results(tickets, timeout=0.3)
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
    assert (await home.wait(ticket, timeout=30)).id == other
    assert (await home.wait("tom", timeout=30)).id == "tom"


async def test_cancel_wins_or_says_what_was_first(client: AsyncClient, worker: Worker):
    """A waiting request ends as canceled, with its bytes; one that is over keeps its result."""
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
    with pytest.raises(ValueError, match="validation error"):
        await home.cancel("tom")  # it cannot be read, and stands
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
    """Rows that wait or are being drawn end, too; a folder of the same name is no batch."""
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


async def test_a_picture_that_was_changed_is_not_handed_out(
    home: AsyncClient, worker: Worker, tmp_path: Path
):
    """An image is compared with its result's sha256; nothing damaged is saved."""
    ticket = await home.submit(CAT)
    result = await worker(home.store, ticket.key)
    await home.store.put(result.images[0].key, b"something else")
    with pytest.raises(Damaged, match="another sha256"):
        await home.fetch(ticket, tmp_path / "out")
    await home.store.delete(result.images[0].key)
    with pytest.raises(Damaged, match="is gone"):
        await home.images(ticket)
    assert list(tmp_path.glob("out/**/*.png")) == []


async def test_models_are_those_of_live_workers_and_of_the_store(home: AsyncClient):
    """Names from heartbeats and from `models/`; a heartbeat may say little, or nonsense."""
    await home.store.put(worker_key("one"), b'{"seq": 1, "models": ["doodle", "sd21"]}')
    await home.store.put(worker_key("two"), b'{"seq": 1, "models": ["doodle"]}')
    await home.store.put(worker_key("three"), b"[]")
    await home.store.create("models/tom/v1/card.json", b"{}")
    await home.store.create("models/tom/v2/card.json", b"{}")
    found = [(m.name, m.workers, m.versions) for m in await home.models()]
    assert found == [("doodle", 2, ()), ("sd21", 1, ()), ("tom", 0, ("v1", "v2"))]


async def test_a_store_at_a_glance(home: AsyncClient, worker: Worker):
    """What waits, what is being drawn and what ended are told apart."""
    await home.submit(CAT, id="waits")
    await claim(home, "runs", b"{}")
    await worker(home.store, (await home.submit(CAT, id="done")).key)
    found = await home.known()
    assert (found.queued, list(found.processing), found.over) == (("waits",), ["runs"], 1)
    assert [result.id for result in found.latest] == ["done"]


async def test_a_store_that_fails_tells_the_waiters(s3_front: S3Front):
    """A store that refuses is an error in words, not a hang."""
    s3_front.faults.append(Fault("denied", method="HEAD", times=1000))
    async with AsyncClient("s3://bucket") as client:
        with pytest.raises(StoreUnavailable, match="denied"):
            await client.wait("tom", timeout=30)


def test_plain_code_uses_the_same_client(tmp_path: Path):
    """`Client` is `AsyncClient` without await, on a loop of its own."""
    with Client(tmp_path / "store") as dream:
        tickets = [dream.submit(CAT, id=f"r{k}") for k in range(3)]
        with pytest.raises(StillWorking):
            dream.wait(tickets[0], timeout=0.05)
        for ticket in tickets:
            dream.cancel(ticket)
        assert {result.status for result in dream.results(tickets, timeout=30)} == {"canceled"}
        assert next(dream.results(tickets)).id in {t.id for t in tickets}  # stopping early is fine
        with pytest.raises(UnknownRequest):
            dream.status("nobody")
        assert dream.models() == []
    dream.close()
    with pytest.raises(RuntimeError, match="closed"):
        dream.models()


async def test_plain_code_works_in_a_running_loop(tmp_path: Path):
    """As in a notebook, whose cells run inside a loop."""
    with Client(tmp_path / "store") as dream:
        assert dream.status(dream.submit(CAT)).status == "queued"


def test_a_client_can_wait_before_a_worker_answers(tmp_path: Path, worker: Worker):
    """A result that comes later, from elsewhere, ends the wait."""
    with Client(tmp_path / "store") as dream:
        ticket = dream.submit(CAT)

        async def elsewhere() -> None:
            async with AsyncClient(tmp_path / "store") as other:
                await worker(other.store, ticket.key)

        results = dream.results([ticket], timeout=30)
        asyncio.run(elsewhere())
        assert next(results).id == ticket.id
        assert result_key(ticket.id) in {
            p.relative_to(tmp_path / "store").as_posix() for p in (tmp_path / "store").rglob("*.json")
        }
