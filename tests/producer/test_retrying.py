"""Retrying a request that did not succeed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from producer import AsyncClient
from producer.errors import NothingToRetry
from producer.requests import Ticket
from schemas.errors import Rejected
from schemas.layout import fingerprint
from schemas.result import Frozen, Result
from tests.cloud import Cloud

Cli = Callable[..., subprocess.CompletedProcess[str]]
Worker = Callable[..., Any]
CAT = {"prompt": "a cat", "steps": 1, "seed": 3}


async def ended(client: AsyncClient, worker: Worker, document: Any, status: str, **fields: Any) -> Ticket:
    """Submit a request, and let it end in some way."""
    ticket = await client.submit(document, **fields)
    await worker(client.store, ticket.key, status=status)
    return ticket


@pytest.mark.anyio
@pytest.mark.parametrize("status", ["failed", "partial", "canceled", "expired"])
async def test_what_did_not_succeed_goes_again_under_a_new_id(home: AsyncClient, worker: Worker, status: str):
    """The same bytes, `<id>-r2`; the first result stays."""
    first = await ended(home, worker, CAT, status, id="cats/a")
    again = await home.retry(first)
    assert (again.id, again.was) == ("cats/a-r2", status)
    assert again.ticket is not None
    assert again.ticket.fingerprint == first.fingerprint
    assert (await home.status("cats/a-r2")).status == "queued"
    assert (await home.status("cats/a")).status == status


@pytest.mark.anyio
async def test_a_manifest_that_names_itself_gets_the_new_name(home: AsyncClient, worker: Worker):
    """Otherwise it would be answered under the old one."""
    first = await ended(home, worker, CAT | {"id": "mine"}, "failed")
    again = await home.retry(first)
    assert again.ticket is not None
    assert json.loads((await home.store.get(again.ticket.key)).body) == CAT | {"id": "mine-r2"}
    await worker(home.store, again.ticket.key, status="failed")
    assert (await home.retry("mine-r2")).id == "mine-r3"
    assert (await home.retry("mine")).id == "mine-r3", "the second retry is waiting"


@pytest.mark.anyio
async def test_a_retry_is_not_repeated_while_it_works_or_when_it_succeeded(home: AsyncClient, worker: Worker):
    """Asking twice submits once; after a failed retry the next one has the next number."""
    first = await ended(home, worker, CAT, "failed", id="a")
    again = await home.retry(first)
    assert (await home.retry(first)) == type(again)("a-r2", "failed", None)
    assert again.ticket is not None
    await worker(home.store, again.ticket.key)
    assert (await home.retry("a")).ticket is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("id", "new"),
    [
        ("a", "a-r2"),
        ("cats/a-r9", "cats/a-r10"),
        ("a~0123abcd", "a-0123abcd-r2"),
        ("_odd/_x", "odd/x-r2"),
        ("x" * 100, "x" * 97 + "-r2"),
        ("queue/1b2c-3", "queue/1b2c-3-r2"),
    ],
)
async def test_any_id_has_a_next_one(home: AsyncClient, id: str, new: str):
    """Also ids that only workers make: characters that a client may not choose are replaced."""
    body = json.dumps(CAT).encode()
    result = Result(id=id, status="failed", fingerprint=fingerprint(body), request=Frozen.of(body))
    await home.store.create(f"results/{id}/result.json", result.to_json())
    again = await home.retry(id)
    assert again.id == new
    assert again.ticket is not None
    assert (again.ticket.id, (await home.store.get(again.ticket.key)).body) == (new, body)


@pytest.mark.anyio
async def test_a_row_goes_again_while_its_batch_is_still_on_its_way(home: AsyncClient, worker: Worker):
    """A name below a running batch is not a retry that exists."""
    rows = b"\n".join(json.dumps(CAT | {"custom_id": name}).encode() for name in ("a", "b"))
    await home.submit_batch(rows, id="two")
    await home.store.create("requests/two/b.json", json.dumps(CAT).encode())
    await worker(home.store, "requests/two/b.json", status="failed")
    again = await home.retry("two/b")
    assert (again.id, again.ticket is not None) == ("two/b-r2", True)


@pytest.mark.anyio
async def test_there_must_be_something_to_retry(home: AsyncClient, worker: Worker):
    """Not what succeeded, is waiting, or was cut; what can never succeed is refused with the reason."""
    done = await ended(home, worker, CAT, "succeeded", id="done")
    with pytest.raises(NothingToRetry, match="done succeeded"):
        await home.retry(done)
    await home.submit(CAT, id="waiting")
    with pytest.raises(NothingToRetry, match="has not ended: it is queued"):
        await home.retry("waiting")
    await home.store.create("requests/bad.json", b'{"prompt": 5}')
    await worker(home.store, "requests/bad.json", status="failed")
    with pytest.raises(Rejected, match="prompt"):
        await home.retry("bad")
    assert Frozen.of(b"x" * 10, keep=5).cut


@pytest.mark.anyio
async def test_of_a_batch_only_the_rows_go_again_that_did_not_succeed(home: AsyncClient, worker: Worker):
    """Rows keep their names, also those that are named after their line."""
    rows = [CAT, CAT | {"custom_id": "b"}, CAT | {"seed": 9}]
    body = b"\n".join(json.dumps(row).encode() for row in rows)
    batch = await home.submit_batch(body, id="three")
    for name, status in (("line-000001", "succeeded"), ("b", "failed"), ("line-000003", "failed")):
        await home.store.create(f"requests/three/{name}.json", json.dumps(CAT).encode())
        await worker(home.store, f"requests/three/{name}.json", status=status)
    await worker(home.store, batch.key, status="partial")

    again = await home.retry(batch)
    assert again.ticket is not None
    assert again.ticket.key == "requests/three-r2.jsonl"
    lines = (await home.store.get(again.ticket.key)).body.split(b"\n")
    assert [line and json.loads(line) for line in lines] == [b"", rows[1], rows[2]]


def test_the_command_line_retries_and_says_so(dreamdrop: Cli, tmp_path: Path):
    """`retry` prints the new id; what a worker then draws is a result of its own."""
    store = tmp_path / "store"
    (tmp_path / "a.json").write_text(json.dumps(CAT | {"width": 64, "height": 64}))
    dreamdrop("submit", "a.json", "--id", "a", "--store", str(store))
    dreamdrop("cancel", "a", "--store", str(store))
    done = dreamdrop("retry", "a", "--store", str(store))
    assert (done.returncode, done.stdout) == (0, "a-r2\n")
    assert "its result stays" in done.stderr
    again = dreamdrop("retry", "a", "--store", str(store), "--json")
    assert json.loads(again.stdout) == {"id": "a-r2", "of": "a", "was": "canceled", "submitted": False}
    assert dreamdrop("retry", "nobody", "--store", str(store)).returncode == 2


@pytest.mark.anyio
async def test_what_can_only_fail_again_is_to_be_corrected(
    home: AsyncClient, worker: Worker, dreamdrop: Any, tmp_path: Path
):
    """Retrying a wrong manifest names the request, says what to do, and repeats what is wrong."""
    await home.store.create("requests/bad.json", b'{"prompt": 5}')
    await worker(home.store, "requests/bad.json", status="failed")
    done = await anyio.to_thread.run_sync(dreamdrop, "retry", "bad", "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "bad would fail again; correct the request and submit it: prompt is 5" in done.stderr


def test_a_retry_goes_by_queue_where_there_is_one(dreamdrop: Cli, cloud: Cloud, tmp_path: Path):
    """With DREAMDROP_QUEUE workers are notified at once."""
    queue = cloud.queue()
    both = cloud.environment() | {"DREAMDROP_QUEUE": queue, "DREAMDROP_STORE": cloud.store}
    (tmp_path / "a.json").write_text(json.dumps(CAT))
    dreamdrop("submit", "a.json", "--id", "a", **cloud.environment() | {"DREAMDROP_STORE": cloud.store})
    dreamdrop("cancel", "a", **both)
    assert dreamdrop("retry", "a", **both).stdout == "a-r2\n"
    assert [json.loads(body)["id"] for body in cloud.take(queue)] == ["a-r2"]
