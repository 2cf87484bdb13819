"""Requests by queue: what travels in a message, what by claim check, and how it is waited for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from producer import AsyncClient, Client, Conflict
from schemas.errors import Rejected, Unsupported
from schemas.events import Direct, Reference, decode
from tests.cloud import Cloud, wait_for
from tests.servers.fault_proxy import FaultProxy, Rule, failing
from tests.worker_process import worker

Cli = Callable[..., subprocess.CompletedProcess[str]]
CAT = {"prompt": "a cat", "steps": 1, "seed": 3}


@pytest.fixture
async def dream(cloud: Cloud) -> AsyncIterator[AsyncClient]:
    """A client of a fresh bucket."""
    async with AsyncClient(cloud.store) as client:
        yield client


@pytest.mark.anyio
async def test_a_request_travels_as_it_is_with_an_id(dream: AsyncClient, cloud: Cloud):
    """The message is the manifest; the id that the ticket names is in it, and nothing is in the store."""
    queue = cloud.queue()
    (ticket,) = await dream.send(CAT, queue=queue)

    (body,) = cloud.take(queue)
    assert (json.loads(body), ticket.key) == (CAT | {"id": ticket.id}, "")
    assert isinstance(decode(body)[0], Direct)
    assert cloud.keys("requests/") == []


@pytest.mark.anyio
async def test_many_requests_travel_ten_a_call(dream: AsyncClient, cloud: Cloud):
    """Tickets come in the order of the requests; an id that a manifest has stays."""
    queue = cloud.queue()
    requests = [CAT | {"seed": n} for n in range(11)] + [CAT | {"id": "mine"}]
    tickets = await dream.send(iter(requests), queue=queue)
    assert len({ticket.id for ticket in tickets}) == 12
    assert tickets[-1].id == "mine"
    assert cloud.depth(queue) == 12


@pytest.mark.anyio
async def test_what_is_too_big_for_a_message_is_dropped_first(dream: AsyncClient, cloud: Cloud):
    """The object is there before the message that refers to it; a small one beside it travels itself."""
    queue = cloud.queue(MaximumMessageSize="1024")
    big = CAT | {"metadata": {"text": "x" * 2000}}
    tickets = await dream.send([big, CAT], queue=queue)

    items = [decode(body)[0] for body in cloud.take(queue)]
    (reference,) = [item for item in items if isinstance(item, Reference)]
    assert reference.key == tickets[0].key == f"requests/{tickets[0].id}.json"
    assert json.loads(cloud.read(reference.key)) == big | {"id": tickets[0].id}
    assert cloud.keys("requests/") == [reference.key]


@pytest.mark.anyio
@pytest.mark.parametrize("request_", [CAT | {"prompt": "not \ufffe a letter"}, json.dumps(CAT).encode()])
async def test_what_no_message_carries_is_dropped_first(
    dream: AsyncClient, cloud: Cloud, request_: dict[str, object] | bytes
):
    """A character that queues refuse, or an id that is a path: by claim check."""
    queue = cloud.queue()
    id = "cats/a" if isinstance(request_, bytes) else None
    (ticket,) = await dream.send(request_, queue=queue, id=id)
    (body,) = cloud.take(queue)
    assert decode(body) == [Reference(ticket.key)]
    assert cloud.keys("requests/") == [ticket.key]


@pytest.mark.anyio
async def test_a_batch_is_announced_by_a_message(dream: AsyncClient, cloud: Cloud):
    """Its rows stay together: one object, one message, one batch result."""
    queue = cloud.queue()
    rows = b"\n".join(json.dumps(CAT | {"seed": n}).encode() for n in range(30))
    ticket = await dream.send_batch(rows, queue=queue, id="thirty")
    assert cloud.read("requests/thirty.jsonl") == rows
    assert [decode(body) for body in cloud.take(queue)] == [[Reference(ticket.key)]]


@pytest.mark.anyio
async def test_one_fault_and_nothing_is_sent(dream: AsyncClient, cloud: Cloud):
    """The message says which of the requests is wrong, and where."""
    queue = cloud.queue()
    with pytest.raises(Rejected, match=r"request 2 of 3: .*steps"):
        await dream.send([CAT, CAT | {"steps": "many"}, CAT], queue=queue)
    with pytest.raises(Rejected, match="the id names one request, but 2 were given"):
        await dream.send([CAT, CAT], queue=queue, id="mine")
    assert cloud.depth(queue) == 0


@pytest.mark.anyio
async def test_the_same_request_is_not_sent_when_it_is_over(
    dream: AsyncClient, cloud: Cloud, worker: Callable[..., object]
):
    """A chosen id is looked up first, as `submit` does; another body under it is a conflict."""
    queue = cloud.queue()
    named = CAT | {"id": "mine"}
    ticket = await dream.submit(named)
    await worker(dream.store, ticket.key)  # type: ignore[misc]

    assert (await dream.send(named, queue=queue))[0].id == "mine"
    with pytest.raises(Conflict):
        await dream.send(named | {"seed": 4}, queue=queue)
    assert cloud.depth(queue) == 0


@pytest.mark.anyio
async def test_a_conflict_is_found_before_anything_is_dropped(
    dream: AsyncClient, cloud: Cloud, worker: Callable[..., object]
):
    """One of two ids has ended with another body: the other request is not dropped or sent either."""
    queue = cloud.queue(MaximumMessageSize="1024")
    ticket = await dream.submit(CAT | {"id": "mine"})
    await worker(dream.store, ticket.key)  # type: ignore[misc]
    big = CAT | {"metadata": {"text": "x" * 2000}}
    with pytest.raises(Conflict):
        await dream.send([big, CAT | {"id": "mine", "seed": 4}], queue=queue)
    with pytest.raises(Conflict, match="two of these requests have it"):
        await dream.send([CAT | {"id": "two"}, CAT | {"id": "two", "seed": 4}], queue=queue)
    assert (cloud.keys("requests/"), cloud.depth(queue)) == ([], 0)

    twice = await dream.send([CAT | {"id": "two"}, CAT | {"id": "two"}], queue=queue)
    assert twice[0] == twice[1]
    assert cloud.depth(queue) == 1


@pytest.mark.anyio
async def test_a_queue_that_is_not_there_is_told_at_once(dream: AsyncClient, cloud: Cloud):
    """Before anything is dropped or sent."""
    with pytest.raises(Unsupported, match="there is no queue"):
        await dream.send(CAT, queue=cloud.queue() + "-gone", id="cats/a")
    assert cloud.keys() == []


def test_sent_requests_are_drawn_once_and_waited_for(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Plain code: send to a queue, wait, get pictures; big and small, and each twice, as answers get lost."""
    queue = cloud.queue(MaximumMessageSize="1024")
    big = CAT | {"width": 64, "height": 64, "metadata": {"text": "x" * 2000}}
    small = [CAT | {"width": 64, "height": 64, "seed": n} for n in range(3)]
    store = f"{cloud.store}/a/studio"  # references name keys as the store does, without its prefix
    with worker(store, "--queue", queue), failing(FaultProxy(cloud.endpoint)) as proxy:
        proxy.rules.append(Rule("lost", verb="SendMessageBatch", at=(1,)))
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", proxy.url)
        with Client(store) as client:
            tickets = client.send([big, *small], queue=queue)
            results = {result.id: result.status for result in client.results(tickets, timeout=240)}
            assert results == {ticket.id: "succeeded" for ticket in tickets}
            assert len(client.fetch(tickets[0], tmp_path)) == 1
        wait_for(lambda: cloud.depth(queue) == 0, "messages stay")
        assert (proxy.calls["SendMessageBatch"], proxy.injected["lost"]) == (2, 1)
    assert len(cloud.keys("a/studio/results/")) == 2 * len(tickets), "a picture and a result each"


def test_the_command_line_sends_to_a_queue(dreamdrop: Cli, cloud: Cloud, tmp_path: Path):
    """`submit --queue`: files and batches, ids printed as usual; the express lane is the first queue."""
    express, batch = cloud.queue(), cloud.queue()
    (tmp_path / "a.json").write_text(json.dumps(CAT | {"id": "a"}))
    (tmp_path / "rows.txt").write_text("a dog\na cow\n")
    both = cloud.environment() | {"DREAMDROP_QUEUE": f"{express} {batch}", "DREAMDROP_STORE": cloud.store}

    done = dreamdrop("submit", "rows.txt", "a.json", **both)
    assert done.returncode == 0, done.stderr
    rows, a = done.stdout.split()
    assert a == "a"
    assert (cloud.depth(batch), cloud.depth(express)) == (2, 0)
    assert cloud.keys("requests/") == [f"requests/{rows}.jsonl"]

    fast = dreamdrop("submit", "a.json", "--express", "--json", **both)
    assert [r["id"] for r in json.loads(fast.stdout)["requests"]] == ["a"]
    assert cloud.depth(express) == 1


def test_the_command_line_waits_for_what_it_sent(dreamdrop: Cli, cloud: Cloud, tmp_path: Path):
    """`submit --queue --out` shows the pictures' paths when they are there."""
    queue = cloud.queue()
    (tmp_path / "a.json").write_text(json.dumps(CAT | {"width": 64, "height": 64}))
    with worker(cloud.store, "--queue", queue):
        done = dreamdrop(
            *("submit", "a.json", "--queue", queue, "--store", cloud.store),
            *("--out", "out", "--timeout", "240"),
            **cloud.environment(),
        )
    assert done.returncode == 0, done.stderr
    assert [Path(line).suffix for line in done.stdout.split()] == [".png"]


def test_a_missing_queue_is_an_exit_code_and_a_sentence(dreamdrop: Cli, cloud: Cloud, tmp_path: Path):
    """3, as for a store that cannot be used."""
    (tmp_path / "a.json").write_text(json.dumps(CAT))
    gone = cloud.queue() + "-gone"
    done = dreamdrop("submit", "a.json", "--queue", gone, "--store", cloud.store, **cloud.environment())
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no queue" in done.stderr
