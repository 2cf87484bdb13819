"""The AWS documents that connect a bucket to a queue: attributes, policy, notifications.

S3 announces each new object under `requests/` to a queue, whose policy must allow that. A message that was
received too often goes to a second queue, for dead letters. Nothing here makes a call.
"""

from __future__ import annotations

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
SID = "DreamdropBucketNotifications"  # id of our statement in the queue's policy
IDS = {SINGLE: "dreamdrop-json", BATCH: "dreamdrop-jsonl"}  # ids of our notifications, by suffix


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
            theirs = [s for s in listed(policy.get("Statement")) if s.get("Sid") != SID]
            value = _json({**ours, **policy, "Statement": [*theirs, *ours["Statement"]]})
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
