"""A queue whose server fails, stays away or refuses: what is tried again, and what is told."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.queues.sqs import Queue
from schemas.errors import QueueUnavailable, Unsupported
from tests.servers.fault_proxy import FaultProxy, Rule, failing
from tests.servers.relay import Relay

pytestmark = pytest.mark.anyio

Make = Callable[..., str]
VERBS = (
    "SendMessageBatch",
    "ReceiveMessage",
    "ChangeMessageVisibilityBatch",
    "DeleteMessageBatch",
    "GetQueueAttributes",
)


async def test_a_server_that_comes_back_is_asked_again(
    make: Make, moto_url: str, monkeypatch: pytest.MonkeyPatch
):
    """A long poll is cut in the middle and connections are refused for a while: nobody notices."""
    url = make()
    async with Relay(moto_url) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", relay.url)
        async with Queue(url) as queue:
            before = relay.connections
            # the poll that is cut may swallow the message, as real ones do: it is shown again after 1 s
            waiting = asyncio.create_task(queue.receive(1, wait=5, visibility=1))
            await asyncio.sleep(0.2)
            await relay.shut()
            sending = asyncio.create_task(queue.send(["hello"]))
            await asyncio.sleep(0.3)
            await relay.open()

            assert len(await sending) == 1
            (message,) = await waiting
            assert message.body == "hello"
            assert relay.connections > before


async def test_a_server_that_stays_away_is_told_in_words(make: Make):
    """After the patience: what failed, why, and which variable to look at; never a password."""
    far = Queue("http://user:hunter2@127.0.0.1:9/000/away", patience=0.2)
    with pytest.raises(QueueUnavailable, match=r"cannot be reached: check AWS_ENDPOINT_URL_SQS") as caught:
        await far.open()
    assert "hunter2" not in str(caught.value) + far.url


@pytest.mark.parametrize("whole", [True, False])
async def test_sending_says_how_many_are_left(make: Make, whole: bool):
    """One of three calls fails, as a whole or in each entry: twenty were sent, five were not."""

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        entries = request.get("Entries", [])
        if verb != "SendMessageBatch":
            return 200, {"Attributes": {}}
        if len(entries) == 10:
            done = [{"Id": e["Id"], "MessageId": "m", "MD5OfMessageBody": ""} for e in entries]
            return 200, {"Successful": done}
        if whole:
            return 500, {"__type": "InternalError"}
        return 200, {"Failed": [failure(entry, "InvalidMessageContents", fault=True) for entry in entries]}

    why = "answered 500" if whole else "does not accept every message: InvalidMessageContents"
    with scripted(answer) as url:
        async with Queue(url, patience=0.1) as queue:
            with pytest.raises(QueueUnavailable, match=rf"{why}.*\(5 of 25 not sent\)"):
                await queue.send(["hello"] * 25)


async def test_a_queue_that_does_not_exist_is_refused_at_once(make: Make):
    """The message says what to correct, and how to make a queue."""
    with pytest.raises(Unsupported, match=r"there is no queue .*gone.*DREAMDROP_QUEUE.*setup queue"):
        await Queue(make() + "-gone").open()


@pytest.mark.parametrize("url", ["", "dreamdrop", "s3://bucket/queue", "https://sqs.eu-west-1.amazonaws.com"])
def test_what_names_no_queue_is_refused(url: str):
    """The message shows what a queue's URL looks like."""
    with pytest.raises(Unsupported, match="give an SQS queue's URL"):
        Queue(url)


def test_a_fifo_queue_is_refused():
    """S3 sends to none, and one stuck request would hold up its whole group."""
    with pytest.raises(Unsupported, match="create a standard queue"):
        Queue("https://sqs.eu-west-1.amazonaws.com/1/q.fifo")


async def test_a_long_poll_can_be_cancelled(queue: Queue):
    """A worker that stops does not wait for the end of its poll."""
    waiting = asyncio.create_task(queue.receive(1, wait=20))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await queue.facts()).visible == 0


FAULTS = ["slow_down", "broken", "reset", "cut_request", "late", "lost", "broken_after", "truncated"]


@pytest.mark.parametrize("kind", FAULTS)
async def test_every_verb_survives_every_fault(
    make: Make, moto_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """The first call of each verb fails: at the end every message was received, and the queue is empty.

    A message may come twice, when the answer to its sending was lost.
    """
    url = make()
    with failing(FaultProxy(moto_url)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", proxy.url)
        proxy.rules += [Rule(kind, verb=verb, at=(1,), seconds=0.01) for verb in VERBS]
        async with Queue(url, rng=random.Random(5)) as queue:
            bodies = [f"message {n}" for n in range(3)]
            assert len(await queue.send(bodies)) == 3
            received: set[str] = set()
            while (await queue.facts()).visible or (await queue.facts()).in_flight:
                found = await queue.receive(10, wait=1, visibility=1)  # one whose answer is lost comes again
                received |= {message.body for message in found}
                assert await queue.renew(found, 30) == []
                await queue.delete(found)
            assert received == set(bodies)
        assert all(proxy.calls[verb] >= 2 for verb in VERBS)


@contextmanager
def scripted(answer: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """A queue server that answers as told: (verb, request) to (status, answer). Yields a queue's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            verb = self.headers["X-Amz-Target"].rpartition(".")[2]
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, document = answer(verb, request)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/000000000000/q"
    finally:
        server.shutdown()
        server.server_close()


def failure(entry: dict[str, Any], code: str, *, fault: bool) -> dict[str, Any]:
    return {"Id": entry["Id"], "Code": code, "SenderFault": fault}


async def test_only_the_entries_that_failed_are_sent_again(make: Make):
    """The queue drops every second entry once: each message is taken exactly once, ids in order."""
    taken: list[str] = []
    seen: set[str] = set()

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb != "SendMessageBatch":
            return 200, {"Attributes": {}}
        done, failed = [], []
        for entry in request["Entries"]:
            body = entry["MessageBody"]
            if body not in seen and int(body) % 2:
                seen.add(body)
                failed.append(failure(entry, "InternalError", fault=False))
            else:
                taken.append(body)
                done.append({"Id": entry["Id"], "MessageId": f"id-{body}", "MD5OfMessageBody": ""})
        return 200, {"Successful": done, "Failed": failed}

    with scripted(answer) as url:
        async with Queue(url, rng=random.Random(1)) as queue:
            assert await queue.send([str(n) for n in range(12)]) == [f"id-{n}" for n in range(12)]
    assert sorted(taken, key=int) == [str(n) for n in range(12)]


async def test_deleting_tells_refused_from_overloaded(make: Make):
    """An expired receipt is not tried again, an overloaded queue is; what stays is named."""
    tries: dict[str, int] = {}

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb == "ReceiveMessage":
            names = ("good", "expired", "slow", "stuck")
            return 200, {"Messages": [{"MessageId": n, "ReceiptHandle": n, "Body": n} for n in names]}
        failed = []
        for entry in request.get("Entries", ()):
            name = entry["ReceiptHandle"]
            tries[name] = tries.get(name, 0) + 1
            if name == "expired":
                failed.append(failure(entry, "ReceiptHandleIsInvalid", fault=True))
            elif name == "stuck" or (name == "slow" and tries[name] < 3):
                failed.append(failure(entry, "ServiceUnavailable", fault=False))
        return 200, {"Failed": failed} if verb == "DeleteMessageBatch" else {"Attributes": {}}

    with scripted(answer) as url:
        async with Queue(url, rng=random.Random(2)) as queue:
            messages = await queue.receive(10, wait=0)
            assert [m.id for m in await queue.delete(messages)] == ["expired", "stuck"]
    assert (tries["good"], tries["expired"], tries["slow"]) == (1, 1, 3)


async def test_renewing_tells_expired_from_overloaded(make: Make):
    """An expired message is named; one that the queue could not serve is an error, for it is still ours."""

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb == "ReceiveMessage":
            return 200, {
                "Messages": [{"MessageId": n, "ReceiptHandle": n, "Body": n} for n in ("old", "stuck")]
            }
        failed = []
        for entry in request.get("Entries", ()):
            old = entry["ReceiptHandle"] == "old"
            code = "InvalidParameterValue" if old else "InternalError"
            failed.append(failure(entry, code, fault=old))
        return 200, {"Failed": failed} if verb == "ChangeMessageVisibilityBatch" else {"Attributes": {}}

    with scripted(answer) as url:
        async with Queue(url, rng=random.Random(3)) as queue:
            old, stuck = await queue.receive(10, wait=0)
            assert await queue.renew([old], 60) == [old]
            with pytest.raises(QueueUnavailable, match="did not renew 1 of 2 messages"):
                await queue.renew([old, stuck], 60)


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_queue_that_is_overloaded_is_asked_again(make: Make, status: int):
    """Three refusals in a row, then the answer."""
    calls: list[str] = []

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        calls.append(verb)
        bad = len(calls) <= 3
        return (
            (status, {"__type": "com.amazonaws.sqs#RequestThrottled"}) if bad else (200, {"Attributes": {}})
        )

    with scripted(answer) as url:
        async with Queue(url, rng=random.Random(4)):
            pass
    assert len(calls) == 4


async def test_a_client_that_may_only_send_can_send(make: Make):
    """Looking at the queue is denied: that is no reason not to open it, nor not to send."""

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb != "SendMessageBatch":
            return 403, {"__type": "com.amazonaws.sqs#AccessDeniedException", "message": "secret policy"}
        done = [{"Id": e["Id"], "MessageId": "m", "MD5OfMessageBody": ""} for e in request["Entries"]]
        return 200, {"Successful": done}

    with scripted(answer) as url:
        async with Queue(url) as queue:
            assert await queue.send(["hello"]) == ["m"]
            with pytest.raises(
                Unsupported, match=r"access denied: give this identity sqs:ReceiveMessage"
            ) as caught:
                await queue.receive(1)
    assert "secret" not in str(caught.value)


async def test_refused_keys_are_not_tried_again(make: Make):
    """Whoever has wrong keys hears it at once, in words."""
    calls: list[str] = []

    def answer(verb: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        calls.append(verb)
        return 403, {"__type": "com.amazonaws.sqs#InvalidClientTokenId"}

    with scripted(answer) as url, pytest.raises(QueueUnavailable, match="keys are refused"):
        await Queue(url).open()
    assert len(calls) == 1
