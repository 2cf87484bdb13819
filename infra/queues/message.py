"""A queue's messages: what one contains and may contain, how many fit into one call, which entries of a call failed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

BATCH = 10  # entries of one call
MAX_BYTES = 1 << 20  # of one message, and of one call, unless the queue allows less
#: Characters that a message may not contain: SQS allows those of XML only.
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
    """How a queue is set up, and approximately how full it is."""

    visibility: float  # seconds
    dead_letters: str | None  # ARN of the queue for what was received too often
    visible: int  # messages that can be received; approximate, like the next
    in_flight: int  # messages that were received and are neither deleted nor visible again


@dataclass(frozen=True, slots=True)
class Failed:
    """One failed entry of a call."""

    refused: bool  # for good; else the queue could not serve it at the moment
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
    """Whether a queue accepts this text: not empty, and without control characters."""
    return bool(body) and not _UNSENDABLE.search(body)


def size_of(body: str, attributes: Mapping[str, str] | None = None) -> int:
    """Bytes of a message as the queue counts them: the names, types and values of attributes count too."""
    named = sum(len(k.encode()) + len("String") + len(v.encode()) for k, v in (attributes or {}).items())
    return len(body.encode("utf-8", "surrogatepass")) + named


def fitting(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """The indexes of messages, in order, grouped so that each group fits in one call of `limit` bytes."""
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
    """The messages in groups of as many as one call takes."""
    for start in range(0, len(messages), BATCH):
        yield messages[start : start + BATCH]
