"""`AsyncClient`: submit, status, fetch, models and the overview."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import producer
from producer import AsyncClient, Conflict, UnknownRequest
from producer.errors import Damaged
from producer.requests import fresh_id
from schemas.errors import Rejected
from schemas.layout import (
    claim_key,
    is_id,
    request_key,
    status_key,
    worker_key,
)
from schemas.manifest import Text2Img
from schemas.result import Progress
from tests.producer.claiming import claim

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat"}
Worker = Callable[..., Any]


async def test_a_request_is_dropped_and_its_pictures_come_back(
    client: AsyncClient, worker: Worker, tmp_path: Path
):
    """Submit, wait, fetch and open, on every kind of store."""
    ticket = await client.submit(CAT | {"number_of_images": 2})
    assert (await client.store.get(ticket.key)).body == b'{"prompt": "a cat", "number_of_images": 2}'
    assert (await client.status(ticket)).status == "queued"
    waiting = asyncio.create_task(client.wait(ticket, timeout=120))
    await worker(client.store, ticket.key)

    assert (await waiting).status == "succeeded"
    assert (await client.status(ticket.id)).over
    paths = await client.fetch(ticket, tmp_path / "out")
    assert paths == [tmp_path / "out" / ticket.id / name for name in ("0.png", "1.png")]
    assert [picture.size for picture in await client.images(ticket)] == [(8, 8), (8, 8)]


def test_every_name_that_the_package_offers_is_there():
    """The names are loaded on first use, so a wrong module would go unnoticed."""
    assert [getattr(producer, name).__name__ for name in producer.__all__] == producer.__all__


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
    with pytest.raises(Conflict, match="own id is 'tom'"):
        await home.submit(CAT | {"id": "tom"}, id="jerry")
    fast = await home.submit(CAT, id="fast", express=True)
    assert (fast.id, fast.key) == ("fast", "requests/express/fast.json")


async def test_nothing_is_sent_that_can_never_succeed(home: AsyncClient):
    """A bad manifest, batch row, path or id is refused with the message that a worker would give."""
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
    with pytest.raises(Conflict, match="which is waiting"):
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
    """A typo gets a suggestion, for status, wait, cancel and fetch."""
    await home.submit(CAT, id="cats/tom")
    for verb in (home.status, home.wait, home.cancel, home.fetch):
        with pytest.raises(UnknownRequest, match="did you mean 'cats/tom'"):
            await verb("cats/tim")


async def test_a_row_is_known_before_it_is_dropped(home: AsyncClient):
    """A row of a waiting batch is queued, although its own object is not there yet."""
    await home.submit_batch(b'{"prompt": "a", "custom_id": "x"}', id="many")
    assert (await home.status("many/x")).status == "queued"


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
    await home.store.create("models/tom/2/card.json", b"{}")
    await home.store.create("models/tom/10/card.json", b"{}")
    found = [(m.name, m.workers, m.versions) for m in await home.models()]
    assert found == [("doodle", 2, ()), ("sd21", 1, ()), ("tom", 0, ("2", "10"))]


async def test_models_whose_weights_no_worker_has_are_marked(home: AsyncClient):
    """An older worker does not say what it has: then all of its models count."""
    await home.store.put(
        worker_key("new"), b'{"seq": 1, "models": ["doodle", "sd21"], "available": ["doodle"]}'
    )
    assert [(m.name, m.here) for m in await home.models()] == [("doodle", 1), ("sd21", 0)]
    await home.store.put(worker_key("old"), b'{"seq": 1, "models": ["doodle", "sd21"]}')
    assert [(m.name, m.here) for m in await home.models()] == [("doodle", 2), ("sd21", 1)]


async def test_a_store_at_a_glance(home: AsyncClient, worker: Worker):
    """What waits, what is being drawn and what ended are told apart."""
    await home.submit(CAT, id="waits")
    await claim(home, "runs", b"{}")
    await worker(home.store, (await home.submit(CAT, id="done")).key)
    found = await home.known()
    assert (found.queued, list(found.processing), found.over) == (("waits",), ["runs"], 1)
    assert [result.id for result in found.latest] == ["done"]
