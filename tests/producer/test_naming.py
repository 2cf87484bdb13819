"""A dropped file whose body has an id is found by either name, and canceled once."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from infra.claims.claim import Claim
from producer import AsyncClient, UnknownRequest
from schemas.layout import claim_key, fingerprint, other_body_id, result_key
from schemas.result import Frozen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

Cli = Callable[..., subprocess.CompletedProcess[str]]
Worker = Callable[..., Any]

KEY = "requests/b.json"
BODY = b'{"prompt": "a cat", "id": "foo"}'


async def take(client: AsyncClient, id: str, key: str, body: bytes) -> None:
    """Claim a dropped file as a worker does: the claim, then the file goes."""
    claim = Claim(
        id=id,
        fingerprint=fingerprint(body),
        frozen=Frozen.of(body),
        plan=None,
        session="w",
        nonce="n",
        epoch=1,
        attempt=1,
        source=key,
    )
    assert await client.store.create(claim_key(id, 1), claim.body())
    await client.store.delete(key)


@pytest.mark.parametrize("name", ["b", "foo"])
async def test_either_name_leads_to_the_request(client: AsyncClient, name: str):
    """Before and after the claim, on every kind of store: its state, and which file it came from."""
    await client.store.create("requests/a.json", b'{"prompt": "a dog"}')
    await client.store.create(KEY, BODY)
    state = await client.find(name)
    assert (state.id, state.status, state.source) == ("foo", "queued", KEY)
    await take(client, "foo", KEY, BODY)
    state = await client.find(name)
    assert (state.id, state.status) == ("foo", "processing")
    assert state.source == (KEY if name == "b" else "")


async def test_a_plain_name_means_itself(client: AsyncClient, worker: Worker):
    """No id in the body, its own name as the id, a batch, and a result: nothing else is meant."""
    for name, body in (("a", b'{"prompt": "x"}'), ("c", b'{"prompt": "x", "id": "c"}'), ("d", b"not JSON")):
        await client.store.create(f"requests/{name}.json", body)
        state = await client.find(name)
        assert (state.id, state.status, state.source) == (name, "queued", "")
    await client.submit_batch(b'{"prompt": "x", "id": "row"}', id="many")
    assert (await client.find("many")).id == "many"
    assert (await client.find("many/row")).id == "many/row"
    await client.store.create(KEY, BODY)
    await worker(client.store, "requests/a.json")
    assert (await client.find("a")).status == "succeeded"
    with pytest.raises(UnknownRequest, match="there is no request 'zebra'"):
        await client.find("zebra")


async def test_an_id_that_stands_for_another_body_is_not_mistaken_for_it(home: AsyncClient):
    """Then the answer will stand under the id and a hash, and that is what both names lead to."""
    await take(home, "foo", "requests/foo.json", b'{"prompt": "a dog", "id": "foo"}')
    await home.store.create(KEY, BODY)
    other = other_body_id("foo", fingerprint(BODY))
    state = await home.find("b")
    assert (state.id, state.status, state.source) == (other, "queued", KEY)
    assert (await home.find("foo")).status == "processing"
    ended = await home.cancel("b")
    assert ended.result is not None
    assert (ended.id, ended.result.request.body()) == (other, BODY)
    assert (await home.find("foo")).status == "processing"


@pytest.mark.parametrize("name", ["b", "foo"])
async def test_a_cancel_takes_the_name_that_the_worker_would(client: AsyncClient, name: str):
    """One request, one result: a worker that has just claimed it finds its own id canceled."""
    await client.store.create(KEY, BODY)
    state = await client.cancel(name)
    assert state.result is not None
    assert (state.id, state.status, state.result.request.body()) == ("foo", "canceled", BODY)
    assert state.result.fingerprint == fingerprint(BODY)
    assert await client.store.head(KEY) is None
    assert await client.store.head(result_key("b")) is None


async def test_a_file_that_is_edited_while_it_is_canceled_is_looked_at_again(
    home: AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    """The body that is there when it is read is canceled, under the id that it has."""
    await home.store.create(KEY, BODY)
    edited = b'{"prompt": "a cat", "id": "bar"}'
    real, looks = home.store.head, 0

    async def head(key: str) -> Any:
        nonlocal looks
        looks += key == KEY
        if looks == 3:
            await home.store.put(KEY, edited)
        return await real(key)

    monkeypatch.setattr(home.store, "head", head)
    state = await home.cancel("b")
    assert looks > 3
    assert (state.id, state.status) == ("bar", "canceled")
    assert await home.store.head(result_key("foo")) is None


def test_the_command_line_says_which_name_counts(dreamdrop: Cli, tmp_path: Path):
    """status and cancel print the id, watch follows it, and programs get the file's key."""
    store = tmp_path / "dreamdrop-data"
    (store / "requests").mkdir(parents=True)
    (store / KEY).write_bytes(BODY)
    for name in ("b", "b.json", "foo"):
        done = dreamdrop("status", name)
        assert "requests/b.json has the id foo" in done.stderr
        assert "queued" in done.stdout
        told = json.loads(dreamdrop("status", name, "--json").stdout)
        assert (told["id"], told["source"], told["position"]) == ("foo", KEY, 0)

    async def work() -> None:
        async with AsyncClient(store) as client:
            await take(client, "foo", KEY, BODY)

    asyncio.run(work())
    done = dreamdrop("status", "b")
    assert "requests/b.json has the id foo" in done.stderr
    assert "processing" in done.stdout
    assert "foo is canceled" in dreamdrop("cancel", "b").stderr
    assert dreamdrop("watch", "foo", "--json").stdout.count("canceled") >= 1
    assert "found by that `id`" in dreamdrop("status", "quartz").stderr
