"""A queue's messages: what one holds and may hold, how many fit into one call, and which entries of a call failed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

BATCH = 10  # entries of one call
MAX_BYTES = 1 << 20  # of one message, and of one call, unless the queue allows less
#: What a message may not hold: XML has no such characters, and SQS still thinks in XML.
_UNSENDABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery of a message."""

    id: str  # the same at every delivery
    receipt: str  # of this delivery
    body: str
    receives: int  # deliveries so far, this one included; approximate
    attributes: Mapping[str, str] = field(default_factory=dict)  # those of type String


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """How a queue is set up, and about how full it is."""

    visibility: float  # seconds
    dead_letters: str | None  # ARN of the queue for what was received too often
    visible: int  # messages that wait; approximate, as the next
    in_flight: int  # messages that were received and neither deleted nor shown again


@dataclass(frozen=True, slots=True)
class Failed:
    """One entry of a call that failed by itself."""

    refused: bool  # the queue will not; else it could not, just now
    code: str


def message_of(entry: Mapping[str, Any]) -> Message:
    attributes = {
        name: str(value["StringValue"])
        for name, value in entry.get("MessageAttributes", {}).items()
        if value.get("DataType", "").startswith("String") and "StringValue" in value
    }
    receives = int(entry.get("Attributes", {}).get("ApproximateReceiveCount", 1))
    return Message(entry["MessageId"], entry["ReceiptHandle"], entry.get("Body", ""), receives, attributes)


def failed_of(entry: Mapping[str, Any]) -> Failed:
    return Failed(bool(entry.get("SenderFault")), str(entry.get("Code", ""))[:60])


def facts_of(attributes: Mapping[str, str]) -> QueueFacts:
    """The facts in a queue's attributes."""
    redrive = json.loads(attributes.get("RedrivePolicy") or "{}")
    return QueueFacts(
        visibility=float(attributes.get("VisibilityTimeout", 30)),
        dead_letters=redrive.get("deadLetterTargetArn"),
        visible=int(attributes.get("ApproximateNumberOfMessages", 0)),
        in_flight=int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0)),
    )


def is_sendable(body: str) -> bool:
    """Whether a queue carries this text: not empty, and no control characters in it."""
    return bool(body) and not _UNSENDABLE.search(body)


def size_of(body: str, attributes: Mapping[str, str] | None = None) -> int:
    """Bytes of a message as the queue counts them: an attribute's name, type and value, too."""
    named = sum(len(k.encode()) + len("String") + len(v.encode()) for k, v in (attributes or {}).items())
    return len(body.encode("utf-8", "surrogatepass")) + named


def fitting(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Neighbours that fit in one call together."""
    batch: list[int] = []
    room = 0
    for number, size in enumerate(sizes):
        if batch and (len(batch) == BATCH or room + size > limit):
            yield batch
            batch, room = [], 0
        batch.append(number)
        room += size
    if batch:
        yield batch


def tens(messages: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many as one call takes, in turn."""
    for start in range(0, len(messages), BATCH):
        yield messages[start : start + BATCH]
