"""Looking after failures: dead letters, and requests that did not succeed."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.queues.sqs import Message
from producer import AsyncClient
from producer.checks.dead_letters import read
from producer.commands.show import dead_letters
from producer.errors import NothingToRetry
from producer.requests import Ticket
from schemas.errors import Rejected
from schemas.events import reference
from schemas.layout import fingerprint
from schemas.result import Frozen, Result
from tests.cloud import Cloud, wait_for
from tests.worker_process import worker as worker_process

Cli = Callable[..., subprocess.CompletedProcess[str]]
Worker = Callable[..., Any]
CAT = {"prompt": "a cat", "steps": 1, "seed": 3}
WORDS = st.sampled_from(
    ["Records", "s3", "bucket", "name", "object", "key", "reference", "prompt", "Message", "x"]
)


def event(bucket: str, key: str) -> str:
    """What S3 says of a new object."""
    record = {
        "eventVersion": "2.5",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }
    return json.dumps({"Records": [record]})


# Dead letters -------------------------------------------------------------------------------------


class Letters:
    """A queue whose dead-letter queue holds some messages, and the commands on it."""

    def __init__(self, dreamdrop: Cli, cloud: Cloud) -> None:
        self._dreamdrop = dreamdrop
        self.cloud = cloud
        self.queue, self.dead = cloud.pair()

    def add(self, *bodies: str) -> list[str]:
        sent = [self.cloud.sqs.send_message(QueueUrl=self.dead, MessageBody=body) for body in bodies]
        return [str(message["MessageId"]) for message in sent]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        options = ["--queue", self.queue, "--store", self.cloud.store]
        return self._dreamdrop("dead-letters", *words, *options, **self.cloud.environment())

    def listed(self) -> list[dict[str, Any]]:
        done = self.run("list", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["messages"])


@pytest.fixture
def letters(dreamdrop: Cli, cloud: Cloud) -> Letters:
    """An empty pair of queues."""
    return Letters(dreamdrop, cloud)


def test_each_dead_letter_says_what_it_is_and_why_it_was_not_used(letters: Letters):
    """Texts, faulty manifests, other buckets' events; looking leaves all of them where they are."""
    ids = letters.add(
        "hello?",
        json.dumps(CAT | {"steps": "many"}),
        json.dumps(CAT),
        event("elsewhere", "requests/a.json"),
        event(letters.cloud.bucket, "requests/a+b.json"),
        reference("notes/a.json"),
    )
    found = {letter["id"]: (letter["what"], letter["why"]) for letter in letters.listed()}
    assert found.keys() == set(ids)
    text, faulty, good, other, lost, note = (found[id] for id in ids)
    assert text == ("unknown", "the message is not JSON at line 1, column 1")
    assert faulty[0] == "a manifest"
    assert "steps" in faulty[1]
    assert good == ("a manifest: 'a cat'", "")
    assert other[1] == f"it is of another bucket than {letters.cloud.bucket}"
    assert lost == (f"an event of s3://{letters.cloud.bucket}/requests/a b.json", "")
    assert "names no request" in note[1]

    table = letters.run("list").stdout
    assert all(id in table for id in ids)
    assert letters.cloud.depth(letters.dead) == 6
    assert len(letters.listed()) == 6, "looking gave them back at once"


def test_one_dead_letter_is_shown_whole(letters: Letters):
    """By the beginning of its id; its text laid out, and the rest on the other stream."""
    (id,) = letters.add(json.dumps(CAT))
    done = letters.run("show", id[:13])
    assert json.loads(done.stdout) == CAT
    assert "a manifest: 'a cat'; received" in done.stderr
    assert json.loads(letters.run("show", id, "--json").stdout)["body"] == json.dumps(CAT)

    missing = letters.run("show", "no-such-id")
    assert missing.returncode == 3
    assert "there is no dead letter 'no-such-id'" in missing.stderr


def test_a_dead_letter_goes_back_to_its_queue(letters: Letters):
    """One by its id, then the rest with --all; the texts are unchanged."""
    first, *_ = letters.add("one", "two", "three")
    done = letters.run("retry", first)
    assert done.returncode == 0, done.stderr
    assert letters.cloud.take(letters.queue) == ["one"]
    assert letters.cloud.depth(letters.dead) == 2

    assert len(json.loads(letters.run("retry", "--all", "--json").stdout)["put_back"]) == 2
    assert sorted(letters.cloud.take(letters.queue)) == ["one", "three", "two"]
    assert letters.cloud.depth(letters.dead) == 0
    assert "there are no dead letters" in letters.run("retry", "--all").stderr
    assert letters.run("list").stdout.strip() == "there are no dead letters"


def test_more_than_one_call_takes_are_all_found(letters: Letters):
    """A receive takes ten; a look takes all."""
    letters.add(*(f"text {n}" for n in range(23)))
    assert len(letters.listed()) == 23


def test_what_is_missing_is_said(letters: Letters, cloud: Cloud, dreamdrop: Cli):
    """No queue, no dead-letter queue, neither an id nor --all: each has its sentence."""
    plain = cloud.queue()
    done = dreamdrop("dead-letters", "list", "--queue", plain, **cloud.environment())
    assert done.returncode == 3
    assert "has no dead-letter queue" in done.stderr
    assert "give the workers' queue" in dreamdrop("dead-letters", "list").stderr
    assert "or --all" in letters.run("retry").stderr


def test_a_put_back_request_is_drawn(letters: Letters, tmp_path: Path):
    """From the dead-letter queue to a picture."""
    letters.add(json.dumps(CAT | {"id": "back", "width": 64, "height": 64}))
    assert letters.run("retry", "--all").returncode == 0
    with worker_process(letters.cloud.store, "--queue", letters.queue):
        wait_for(lambda: letters.cloud.keys("results/back/result.json"), "no result", 60)


JSON = st.recursive(st.text(max_size=9) | st.integers(), lambda v: st.dictionaries(WORDS, v, max_size=4))


@given(st.text() | JSON.map(json.dumps))
def test_anything_can_be_described(text: str):
    """No message makes looking fail, and none can move the terminal's cursor."""
    letter = read(Message("id", "receipt", text, 1))
    assert letter.what
    assert all(c.isprintable() or c in "\n\t" for c in letter.what + letter.why)


def test_a_strangers_text_cannot_move_the_cursor(letters: Letters):
    """Escape sequences in keys and texts are shown as a sign that something was there."""
    (key, text) = letters.add(event("b\x1b[2J", "requests/\x1b[31m.json"), "C1 is \x85 here")
    assert "\x1b[2J" not in letters.run("list").stdout
    assert "C1 is \N{REPLACEMENT CHARACTER} here" in letters.run("show", text).stdout
    assert "\x1b" not in letters.run("show", key).stdout


# Requests -----------------------------------------------------------------------------------------


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
    """Else it would be answered under the old one."""
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
    """Also those that only we make: what a client may not choose in them is replaced."""
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
    """Not what succeeded, is waiting, or was cut; and what can never succeed is told in its own words."""
    done = await ended(home, worker, CAT, "succeeded", id="done")
    with pytest.raises(NothingToRetry, match="done succeeded"):
        await home.retry(done)
    await home.submit(CAT, id="waiting")
    with pytest.raises(NothingToRetry, match="is not over: it is queued"):
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
    assert (
        "bad can only fail again as it is written; correct it and submit it anew: prompt is 5" in done.stderr
    )


def test_a_retry_goes_by_queue_where_there_is_one(dreamdrop: Cli, cloud: Cloud, tmp_path: Path):
    """With DREAMDROP_QUEUE workers hear of it at once."""
    queue = cloud.queue()
    both = cloud.environment() | {"DREAMDROP_QUEUE": queue, "DREAMDROP_STORE": cloud.store}
    (tmp_path / "a.json").write_text(json.dumps(CAT))
    dreamdrop("submit", "a.json", "--id", "a", **cloud.environment() | {"DREAMDROP_STORE": cloud.store})
    dreamdrop("cancel", "a", **both)
    assert dreamdrop("retry", "a", **both).stdout == "a-r2\n"
    assert [json.loads(body)["id"] for body in cloud.take(queue)] == ["a-r2"]


def test_a_dead_letters_key_is_shown_whole_on_a_narrow_terminal():
    """A long key is broken into lines: its end tells one from the next."""
    key = "requests/2026/autumn/campaign/some-long-name-of-a-file-0123456789.json"
    letter = read(Message("5" * 36, "receipt", json.dumps({"reference": key}), 4))
    console = Console(width=80, file=io.StringIO())
    console.print(dead_letters([letter]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert key in "".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
