"""The AWS documents that connect a bucket to a queue: attributes, policy, notifications.

S3 announces each new object under `requests/` to a queue, whose policy must allow that. A message that was
received too often goes to a second queue, for dead letters. Nothing here makes a call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.layout import BATCH, REQUESTS, SINGLE

VISIBILITY = 60  # seconds; workers renew every 20
RECEIVES = 10  # after which a message is a dead letter; a worker's own attempts end long before
LEAST_RECEIVES = 5  # with fewer, slow or stopping workers make dead letters of valid requests
LONG_POLL = 20  # seconds
RETENTION = 7 * 86_400  # seconds
DEAD_RETENTION = 14 * 86_400  # seconds, SQS's maximum; it counts from the arrival in the first queue
MAX_BYTES = 1 << 20  # of a message
#: How the ids of our statements and notifications begin. The first gets the plain one, the others add a hash.
SID = "DreamdropBucketNotifications"  # in the queue's policy
IDS = {SINGLE: "dreamdrop-json", BATCH: "dreamdrop-jsonl"}  # in the bucket's notifications, by suffix


@dataclass(frozen=True, slots=True)
class Wiring:
    """The setup that is wanted: a store's bucket, and a queue's name."""

    bucket: str
    prefix: str  # of the store inside the bucket; "" or with its slash
    queue: str
    account: str
    region: str
    partition: str = "aws"

    @property
    def dead(self) -> str:
        return f"{self.queue}-dead"

    def arn(self, queue: str) -> str:
        return f"arn:{self.partition}:sqs:{self.region}:{self.account}:{queue}"

    @property
    def url(self) -> str:
        """The queue's URL on AWS."""
        domain = "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"
        return f"https://sqs.{self.region}.{domain}/{self.account}/{self.queue}"

    def attributes(self) -> dict[str, str]:
        """The queue's attributes."""
        return {
            "VisibilityTimeout": str(VISIBILITY),
            "ReceiveMessageWaitTimeSeconds": str(LONG_POLL),
            "MessageRetentionPeriod": str(RETENTION),
            "MaximumMessageSize": str(MAX_BYTES),
            "RedrivePolicy": _json(
                {"deadLetterTargetArn": self.arn(self.dead), "maxReceiveCount": str(RECEIVES)}
            ),
            "Policy": _json({"Version": "2012-10-17", "Statement": [self.statement()]}),
        }

    def dead_attributes(self) -> dict[str, str]:
        """The dead-letter queue's attributes."""
        return {
            "VisibilityTimeout": str(VISIBILITY),
            "ReceiveMessageWaitTimeSeconds": str(LONG_POLL),
            "MessageRetentionPeriod": str(DEAD_RETENTION),
            "MaximumMessageSize": str(MAX_BYTES),
        }

    def statement(self) -> dict[str, Any]:
        """The statement of the queue's policy that lets this bucket, and no other, send events."""
        return {
            "Sid": SID,
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": self.arn(self.queue),
            "Condition": {
                "ArnEquals": {"aws:SourceArn": bucket_arn(self.bucket, self.partition)},
                "StringEquals": {"aws:SourceAccount": self.account},
            },
        }

    def notifications(self) -> list[dict[str, Any]]:
        """The bucket's notifications: one for each suffix, because a filter has only one."""
        return [
            {
                "Id": id,
                "QueueArn": self.arn(self.queue),
                "Events": ["s3:ObjectCreated:*"],
                "Filter": {
                    "Key": {
                        "FilterRules": [
                            {"Name": "prefix", "Value": self.prefix + REQUESTS},
                            {"Name": "suffix", "Value": suffix},
                        ]
                    }
                },
            }
            for suffix, id in IDS.items()
        ]


def partition_of(region: str) -> str:
    """The AWS partition of a region, as ARNs name it."""
    beginnings = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for beginning, name in beginnings.items() if region.startswith(beginning)), "aws")


def changed_attributes(has: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """What must change in an existing queue: numbers only grow, other settings and statements stay."""
    new = {}
    for name, value in wanted.items():
        if name == "Policy":
            policy = json.loads(has.get(name) or "{}")
            ours = json.loads(value)
            statements = with_statement(listed(policy.get("Statement")), ours["Statement"][0])
            value = _json({**ours, **policy, "Statement": statements})
        elif name == "RedrivePolicy":
            redrive = json.loads(has.get(name) or "{}")
            value = _json({**json.loads(value), **redrive}) if redrive else value
            if int(redrive.get("maxReceiveCount", RECEIVES)) < LEAST_RECEIVES:
                value = _json({**redrive, "maxReceiveCount": str(RECEIVES)})
        elif int(has.get(name, 0)) >= int(value):
            continue
        if _differ(has.get(name, ""), value):
            new[name] = value
    return new


def with_statement(theirs: list[dict[str, Any]], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """A policy's statements with ours. Of our older ones only that of the same bucket is replaced."""
    source = _source(ours)
    statements = [dict(s) for s in theirs]
    for place, statement in enumerate(statements):
        sid = str(statement.get("Sid", ""))
        if sid.startswith(SID) and _source(statement) in (source, None):
            statements[place] = {**ours, "Sid": sid}
            return statements
    return [*statements, {**ours, "Sid": _free_id(SID, source, "", {s.get("Sid") for s in statements})}]


def with_notifications(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A bucket's queue notifications with ours. Of our older ones only those of the same queue and prefix go."""
    places = [_place(entry) for entry in ours]
    rest = [e for e in theirs if not (_is_ours(e) and _place(e) in places)]
    taken = {e.get("Id") for e in rest}
    return [*rest, *({**e, "Id": _free_id(e["Id"], _place(e), "-", taken)} for e in ours)]


def overlapping(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a bucket's notifications that announce some of our files to another queue."""
    mine = {_place(entry) for entry in ours}
    return [
        e
        for e in theirs
        if _place(e) not in mine
        and any(str(event).startswith("s3:ObjectCreated:") for event in e.get("Events", ()))
        and any(_overlap(_rules(e), _rules(entry)) for entry in ours)
    ]


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return any(str(entry.get("Id", "")).startswith(id) for id in IDS.values())


def _place(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """(queue, prefix, suffix) of a notification."""
    return (str(entry.get("QueueArn", "")), *_rules(entry))


def _rules(entry: Mapping[str, Any]) -> tuple[str, str]:
    """(prefix, suffix) of a notification's filter."""
    rules = entry.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    values = {str(rule.get("Name", "")).lower(): str(rule.get("Value", "")) for rule in rules}
    return values.get("prefix", ""), values.get("suffix", "")


def _overlap(one: tuple[str, str], other: tuple[str, str]) -> bool:
    (prefix, suffix), (prefix2, suffix2) = one, other
    return (prefix.startswith(prefix2) or prefix2.startswith(prefix)) and (
        suffix.endswith(suffix2) or suffix2.endswith(suffix)
    )


def _source(statement: Mapping[str, Any]) -> Any:
    """The bucket's ARN that a statement of ours names; None when it names none."""
    for tests in (statement.get("Condition") or {}).values():
        for key, value in tests.items():
            if key.lower() == "aws:sourcearn":
                return value
    return None


def _free_id(id: str, place: Any, joint: str, taken: set[Any]) -> str:
    """The id, or with a hash of what it is for when another has it."""
    digest = hashlib.sha256(repr(place).encode()).hexdigest()[:8]
    return id if id not in taken else f"{id}{joint}{digest}"


def listed(value: Any) -> list[Any]:
    """A value of a policy as a list; a policy may write a list of one as the element itself."""
    return value if isinstance(value, list) else [value] if value else []


def bucket_arn(bucket: str, partition: str) -> str:
    """A bucket's ARN."""
    return f"arn:{partition}:s3:::{bucket}"


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _differ(one: str, other: str) -> bool:
    """Whether two attributes differ; JSON in another spelling is equal, and a number equals its text."""
    try:
        return bool(_plain(json.loads(one)) != _plain(json.loads(other)))
    except json.JSONDecodeError:
        return one != other


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value)
