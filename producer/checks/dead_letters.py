"""Reads a queue's dead letters (messages that were received too often), and puts them back.

A queue cannot be read without receiving, so reading hides the messages for a moment and then makes them
visible again. Mostly they are there because nobody could use them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.queues.message import tens
from infra.queues.sqs import Queue
from schemas.errors import QueueUnavailable, Rejected, Unsupported
from schemas.events import Created, Direct, Ignored, Item, Reference, Unknown, decode
from schemas.layout import is_request, request_id
from schemas.manifest import parse_manifest

if TYPE_CHECKING:
    from infra.queues.sqs import Message

MOST = 1000  # messages that are read
HIDDEN = 60.0  # seconds for which they are hidden
SHOWN = 60  # characters of a prompt


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was received too often, and what is known of it."""

    message: Message
    what: str  # what it is, in a line
    why: str  # why nobody could use it, in a line; "" when nothing is wrong with it
    request: str | None = None  # the id of the request that it refers to


@dataclass(slots=True)
class Box:
    """A queue's dead letters, as they were when they were read."""

    source: Queue
    dead: Queue
    letters: list[DeadLetter]

    async def put_back(self, letters: Sequence[DeadLetter]) -> tuple[list[DeadLetter], list[DeadLetter]]:
        """Send letters to their queue again, then delete them here.

        Returns:
            (those that are back in their queue, those of them that could not be deleted here). One that
            somebody else has received in between is in neither: our old receipt would delete nothing.
        """
        back: list[DeadLetter] = []
        stayed: set[str] = set()
        for ten in tens(letters):
            # Renewed first, so that nobody else receives them while they are sent.
            lost = {message.id for message in await self.dead.renew([one.message for one in ten], HIDDEN)}
            for letter in ten:  # one at a time: after a failure it is known which ones were sent
                self.letters.remove(letter)
                if letter.message.id in lost:
                    continue
                # Sent before it is deleted: after a crash in between it exists twice, but is not lost.
                await self.source.send([letter.message.body], attributes=letter.message.attributes)
                stayed |= {message.id for message in await self.dead.delete([letter.message])}
                back.append(letter)
        return back, [letter for letter in back if letter.message.id in stayed]


@asynccontextmanager
async def look(url: str, bucket: str = "") -> AsyncIterator[Box]:
    """Read a queue's dead letters. Those that are still there afterwards are made visible again.

    Args:
        url: the queue that workers receive from; its redrive policy names the dead-letter queue.
        bucket: the store's, to recognise events of other buckets; "" for none.

    Raises:
        Unsupported: it has no dead-letter queue.
        QueueUnavailable: it does not answer.
    """
    async with Queue(url) as source:
        arn = (await source.facts()).dead_letters
        if arn is None:
            raise Unsupported(
                f"the queue {source.url} has no dead-letter queue: `dreamdrop setup queue --apply` makes one"
            )
        async with Queue(await source.url_of(arn)) as dead:
            box = Box(source, dead, [])
            try:
                async for message in _all(dead):
                    box.letters.append(read(message, bucket))
                yield box
            finally:
                with contextlib.suppress(QueueUnavailable):  # they become visible in a minute anyway
                    await dead.renew([letter.message for letter in box.letters], 0)


def read(message: Message, bucket: str = "") -> DeadLetter:
    """What a message is, and why nobody could use it."""
    items = decode(message.body)
    what, why, request = _item(items[0], bucket, message.id)
    if len(items) > 1:
        faults = (reason for item in items[1:] if (reason := _item(item, bucket, message.id)[1]))
        what, why, request = f"{what}, and {len(items) - 1} more", why or next(faults, ""), None
    return DeadLetter(message, printable(what), printable(why), request)


def printable(text: str) -> str:
    """A stranger's text without control characters, which could move a terminal's cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _item(item: Item, bucket: str, message: str) -> tuple[str, str, str | None]:
    """(what, why, request id) of one item in a message."""
    match item:
        case Direct(body=body):
            try:
                manifest = parse_manifest(body)
            except Rejected as fault:
                return "a manifest", fault.message, None
            prompt = " ".join(manifest.prompt.split())
            short = prompt if len(prompt) <= SHOWN else f"{prompt[: SHOWN - 1]}…"
            return f"a manifest: {short!r}", "", manifest.id or f"queue/{message}"
        case Created(bucket=where, keys=keys):
            if bucket and where != bucket:
                return (
                    f"an event for s3://{where}/{keys[0]}",
                    f"it is from another bucket than {bucket}",
                    None,
                )
            key = next((key for key in keys if "requests/" in key), keys[0])
            inside = key[key.find("requests/") :] if "requests/" in key else key
            if not is_request(inside):
                return f"an event for s3://{where}/{key}", "the key is not a request under requests/", None
            return f"an event for s3://{where}/{key}", "", request_id(inside)
        case Reference(key=key):
            inside = key[key.find("requests/") :] if "requests/" in key else key
            if not is_request(inside):
                return f"a reference to {key}", "the key is not a request under requests/", None
            return f"a reference to {key}", "", request_id(inside)
        case Ignored(reason=reason, detail=detail):
            return f"ignored ({reason}{f': {detail}' if detail else ''})", "", None
        case Unknown(reason=reason):
            return "unknown", reason, None


async def _all(dead: Queue) -> AsyncIterator[Message]:
    """Every message once, until the queue is empty or `MOST` were read."""
    seen: set[str] = set()
    while len(seen) < MOST:
        received = await dead.receive(10, wait=1, visibility=HIDDEN)
        new = [message for message in received if message.id not in seen]
        if not new:
            return
        for message in new:
            seen.add(message.id)
            yield message


def find(letters: Sequence[DeadLetter], id: str) -> DeadLetter:
    """The letter with an id that begins with `id`.

    Raises:
        Rejected: there are several.
        QueueUnavailable: it is not visible now.
    """
    matches = [letter for letter in letters if letter.message.id.startswith(id)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Rejected(
            "invalid_manifest", f"{len(matches)} dead letters begin with {id!r}; give more of the id"
        )
    raise QueueUnavailable(
        f"there is no dead letter {id!r} among the {len(letters)} that are visible now; somebody else may be "
        "reading it: try again in a minute, or see `dreamdrop dead-letters list`"
    )
