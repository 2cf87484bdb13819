"""What a queue says: messages, how it is set up, and which entries of a call failed by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.queues.call_batches import MAX_BYTES


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
    retention: float  # seconds
    max_bytes: int  # of one message
    dead_letters: str | None  # ARN of the queue for what was received too often
    max_receives: int | None  # receives after which a message goes there
    visible: int  # messages that wait; approximate, as the next
    in_flight: int  # messages that were received and neither deleted nor shown again
    arn: str
    wait: float = 0.0  # seconds that a receive waits when it does not say
    policy: str = ""  # JSON: who else may do what


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


def facts_of(found: Mapping[str, str]) -> QueueFacts:
    """From a queue's attributes."""
    redrive = json.loads(found.get("RedrivePolicy") or "{}")
    receives = redrive.get("maxReceiveCount")
    return QueueFacts(
        visibility=float(found.get("VisibilityTimeout", 30)),
        retention=float(found.get("MessageRetentionPeriod", 345_600)),
        max_bytes=int(found.get("MaximumMessageSize", MAX_BYTES)),
        dead_letters=redrive.get("deadLetterTargetArn"),
        max_receives=None if receives is None else int(receives),
        visible=int(found.get("ApproximateNumberOfMessages", 0)),
        in_flight=int(found.get("ApproximateNumberOfMessagesNotVisible", 0)),
        arn=found.get("QueueArn", ""),
        wait=float(found.get("ReceiveMessageWaitTimeSeconds", 0)),
        policy=found.get("Policy", ""),
    )
