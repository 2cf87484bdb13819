"""A small SQS server that promises no more than SQS does: at least once, in any order, receipts that expire.

It speaks the JSON protocol of the actions that the project uses. Its `Habits` make it as unkind as
the real one may ever be; with `hours` shorter than real ones a visibility of a minute takes seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from threading import Event
from typing import Any

from aiohttp import web

from tests.servers.loopback import serving

ACCOUNT = "000000000000"
MISSING = "com.amazonaws.sqs#QueueDoesNotExist"
STALE = "ReceiptHandleIsInvalid"
_GLANCE = 0.05  # seconds between two looks for messages whose time is up


@dataclass
class Habits:
    """How unkind the queue is; each a chance from 0 to 1."""

    twice: float = 0.0  # a message that is received is shown to somebody else as well
    lost: float = 0.0  # what is announced never arrives (never what is sent)
    short: float = 0.0  # a message is shown again long before its time is up
    undeleted: float = 0.0  # a delete is accepted and does nothing
    failed: float = 0.0  # an entry of a batch fails, and is to be tried again
    hours: float = 1.0  # how much of its visibility a message gets


@dataclass(eq=False)
class Letter:
    """A message in a queue."""

    id: str
    body: str
    attributes: dict[str, Any]
    due: float  # when it is shown next, by the monotonic clock
    receives: int = 0
    receipt: str = ""  # of the newest delivery; the older ones are worth nothing


@dataclass
class Shelf:
    """One queue."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    letters: dict[str, Letter] = field(default_factory=dict)

    @property
    def visibility(self) -> float:
        return float(self.attributes.get("VisibilityTimeout", 30))

    @property
    def redrive(self) -> tuple[str, int] | None:
        """(name of the dead-letter queue, receives until a message goes there)."""
        found = json.loads(self.attributes.get("RedrivePolicy") or "null")
        return found and (str(found["deadLetterTargetArn"]).rpartition(":")[2], int(found["maxReceiveCount"]))


class Refused(Exception):
    """An answer that is an error: (code, status)."""


@dataclass
class SqsFront:
    """The server's state; the HTTP part lives in a thread of its own."""

    habits: Habits = field(default_factory=Habits)
    seed: int = 0
    shelves: dict[str, Shelf] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # actions, and what the habits did
    url: str = ""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def add(self, name: str, **attributes: str) -> str:
        """Make a queue; its path, to be put behind the server's or a proxy's URL."""
        self.shelves[name] = Shelf(name, attributes)
        return f"/{ACCOUNT}/{name}"

    def announce(self, name: str, bucket: str, key: str) -> None:
        """What a bucket does when an object was created; may get lost. Also from other threads."""
        if self._is("lost"):
            return
        record = {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
        }
        self._put(self.shelves[name], json.dumps({"Records": [record]}))

    def waiting(self, name: str) -> int:
        """Messages in a queue, seen or unseen."""
        return len(self.shelves[name].letters)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
        await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        asked = json.loads(await request.read())
        self.counts[action] += 1
        try:
            answer = await self._act(action, asked)
        except Refused as refusal:
            code, status = refusal.args
            return _json({"__type": code, "message": "on demand"}, status)
        return _json(answer)

    async def _act(self, action: str, asked: dict[str, Any]) -> dict[str, Any]:
        if action == "CreateQueue":
            return {"QueueUrl": self.url + self.add(asked["QueueName"], **asked.get("Attributes", {}))}
        name = asked.get("QueueName") or str(asked.get("QueueUrl", "")).rpartition("/")[2]
        shelf = self.shelves.get(name)
        if shelf is None:
            raise Refused(MISSING, 400)
        entries = asked.get("Entries", [asked])
        match action.removesuffix("Batch"):
            case "GetQueueUrl":
                return {"QueueUrl": f"{self.url}/{ACCOUNT}/{name}"}
            case "GetQueueAttributes":
                return {"Attributes": self._facts(shelf)}
            case "ReceiveMessage":
                return {"Messages": await self._receive(shelf, asked)}
            case "SendMessage":
                work = [self._send(shelf, entry) for entry in entries]
            case "DeleteMessage":
                work = [self._delete(shelf, entry) for entry in entries]
            case "ChangeMessageVisibility":
                work = [self._change(shelf, entry) for entry in entries]
            case _:
                raise Refused("InvalidAction", 400)
        return self._batch(entries, work) if "Entries" in asked else work[0]

    def _batch(self, entries: list[dict[str, Any]], done: list[dict[str, Any]]) -> dict[str, Any]:
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        for entry, result in zip(entries, done, strict=True):
            if "Code" in result:
                answer["Failed"].append({"Id": entry["Id"], **result})
            elif self._is("failed"):
                fault = {"Code": "InternalError", "SenderFault": False}
                answer["Failed"].append({"Id": entry["Id"], **fault})
            else:
                answer["Successful"].append({"Id": entry["Id"], **result})
        return answer

    async def _receive(self, shelf: Shelf, asked: dict[str, Any]) -> list[dict[str, Any]]:
        ends = time.monotonic() + float(asked.get("WaitTimeSeconds", 0))
        while not (shown := self._shown(shelf)) and time.monotonic() < ends:
            await asyncio.sleep(_GLANCE)
        self._rng.shuffle(shown)
        found = shown[: int(asked.get("MaxNumberOfMessages", 1))]
        visibility = float(asked.get("VisibilityTimeout", shelf.visibility))
        return [self._deliver(letter, visibility) for letter in found]

    def _shown(self, shelf: Shelf) -> list[Letter]:
        """What may be received now; what was received too often moves to the dead-letter queue."""
        now = time.monotonic()
        shown = [letter for letter in list(shelf.letters.values()) if letter.due <= now]
        if shelf.redrive is not None:
            dead, most = shelf.redrive
            for letter in [letter for letter in shown if letter.receives >= most]:
                self.shelves[dead].letters[letter.id] = shelf.letters.pop(letter.id)
                self.counts["redriven"] += 1
                shown.remove(letter)
        return shown

    def _deliver(self, letter: Letter, visibility: float) -> dict[str, Any]:
        letter.receives += 1
        if letter.receives > 1:
            self.counts["delivered again"] += 1
        letter.receipt = uuid.UUID(int=self._rng.getrandbits(128)).hex
        kept = 0.0 if self._is("twice") else visibility * (0.05 if self._is("short") else 1)
        letter.due = time.monotonic() + kept * self.habits.hours
        self.counts["delivered"] += 1
        return {
            "MessageId": letter.id,
            "ReceiptHandle": f"{letter.id}.{letter.receipt}",
            "MD5OfBody": md5(letter.body.encode(), usedforsecurity=False).hexdigest(),
            "Body": letter.body,
            "Attributes": {"ApproximateReceiveCount": str(letter.receives)},
            **({"MessageAttributes": letter.attributes} if letter.attributes else {}),
        }

    def _send(self, shelf: Shelf, entry: dict[str, Any]) -> dict[str, Any]:
        letter = self._put(shelf, entry["MessageBody"], entry.get("MessageAttributes", {}))
        digest = md5(letter.body.encode(), usedforsecurity=False).hexdigest()
        return {"MessageId": letter.id, "MD5OfMessageBody": digest}

    def _put(self, shelf: Shelf, body: str, attributes: dict[str, Any] | None = None) -> Letter:
        letter = Letter(str(uuid.uuid4()), body, attributes or {}, due=time.monotonic())
        shelf.letters[letter.id] = letter
        return letter

    def _delete(self, shelf: Shelf, entry: dict[str, Any]) -> dict[str, Any]:
        """As SQS does, with an old receipt it says yes and deletes nothing."""
        id, _, receipt = str(entry["ReceiptHandle"]).partition(".")
        letter = shelf.letters.get(id)
        if letter is None:
            return {}
        if letter.receipt != receipt:
            self.counts["deleted with an old receipt"] += 1
        elif not self._is("undeleted"):
            del shelf.letters[id]
        return {}

    def _change(self, shelf: Shelf, entry: dict[str, Any]) -> dict[str, Any]:
        id, _, receipt = str(entry["ReceiptHandle"]).partition(".")
        letter = shelf.letters.get(id)
        if letter is None or letter.receipt != receipt or letter.due <= time.monotonic():
            self.counts["renewed with an old receipt"] += 1
            if "Id" not in entry:
                raise Refused(STALE, 400)
            return {"Code": STALE, "SenderFault": True}
        letter.due = time.monotonic() + float(entry["VisibilityTimeout"]) * self.habits.hours
        return {}

    def _facts(self, shelf: Shelf) -> dict[str, str]:
        now = time.monotonic()
        shown = sum(letter.due <= now for letter in list(shelf.letters.values()))
        return {
            "QueueArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:{shelf.name}",
            "VisibilityTimeout": "30",
            "ApproximateNumberOfMessages": str(shown),
            "ApproximateNumberOfMessagesNotVisible": str(len(shelf.letters) - shown),
            **shelf.attributes,
        }

    def _is(self, habit: str) -> bool:
        chance = getattr(self.habits, habit)
        struck = chance > 0 and self._rng.random() < chance
        self.counts[habit] += struck
        return bool(struck)


def _json(document: dict[str, Any], status: int = 200) -> web.Response:
    text = json.dumps(document)
    return web.Response(text=text, status=status, content_type="application/x-amz-json-1.0")


@contextmanager
def answering(front: SqsFront) -> Iterator[SqsFront]:
    """Serve on loopback in a thread until the block ends; `front.url` says where."""
    with serving(front.serve, "sqs-front") as front.url:
        yield front


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queue", default="queue", help="the name of its one queue")
    options = parser.parse_args()
    front = SqsFront()
    with answering(front):
        print(front.url + front.add(options.queue), flush=True)
        Event().wait()


if __name__ == "__main__":
    main()
