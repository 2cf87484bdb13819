"""Judges whether a queue and a bucket are set up so that every new request is announced and none is lost.

It judges their attributes only and makes no call.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infra.queues.setup_documents import (
    DEAD_RETENTION,
    IDS,
    LEAST_RECEIVES,
    MAX_BYTES,
    RECEIVES,
    RETENTION,
    bucket_arn,
    listed,
)
from schemas.layout import REQUESTS

EVENT_BYTES = 64 << 10  # S3 drops an event that is larger than the queue's limit

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    found: str  # what is
    fix: str = ""  # what to do about it


def judge_queue(
    attributes: Mapping[str, str], bucket: str, *, attempts: int = 0, dead: Mapping[str, str] | None = None
) -> list[Finding]:
    """Judge a queue's attributes.

    Args:
        bucket: whose events it should receive; "" for a queue that only people and pipelines send to.
        attempts: how often a worker tries a request; 0 for unknown.
        dead: the attributes of the dead-letter queue, where they are known.
    """
    arn = attributes.get("QueueArn", "")
    if arn.endswith(".fifo"):
        return [
            Finding(
                "queue", "fail", "it is a FIFO queue", "create a standard queue: S3 cannot send to others"
            )
        ]
    findings = [_redrive(attributes, attempts, dead), _sizes(attributes), _retention(attributes, dead)]
    if bucket:
        findings = [_policy(attributes.get("Policy", ""), arn, bucket), *findings]
        key = attributes.get("KmsMasterKeyId", "")
        if key:
            findings.append(_encryption(key))
    return findings


def judge_notifications(configuration: Mapping[str, Any], arn: str, prefix: str) -> Finding:
    """Whether a bucket notifies the queue of new requests. `prefix`: the store's, inside the bucket."""
    missing, notifies_results = [], False
    entries = [e for e in configuration.get("QueueConfigurations", ()) if e.get("QueueArn") == arn]
    for suffix in IDS:
        covering = [entry for entry in entries if _covers(entry, f"{prefix}{REQUESTS}x{suffix}")]
        if not covering:
            missing.append(suffix)
        notifies_results |= any(_covers(entry, f"{prefix}results/x/result{suffix}") for entry in covering)
    if missing:
        why = (
            f"the bucket does not notify this queue of {' and '.join(missing)} files under {prefix}{REQUESTS}"
        )
        return Finding(
            "notifications", "fail", why, "run `dreamdrop setup queue --apply`, or send messages yourself"
        )
    if notifies_results:
        why = "the bucket announces results too: each costs a message that asks for nothing"
        return Finding(
            "notifications", "warn", why, f"limit the notification to the prefix {prefix}{REQUESTS}"
        )
    return Finding("notifications", "pass", f"new files under {prefix}{REQUESTS} are announced")


def _policy(text: str, arn: str, bucket: str) -> Finding:
    source = bucket_arn(bucket, arn.split(":")[1] if arn.count(":") > 1 else "aws")
    allows_others = False
    for statement in listed(json.loads(text or "{}").get("Statement")):
        if statement.get("Effect") != "Allow" or not _is_s3(statement.get("Principal")):
            continue
        if not any(fnmatch.fnmatch("sqs:sendmessage", a.lower()) for a in _texts(statement.get("Action"))):
            continue
        sources, accounts = _condition(statement, "aws:sourcearn"), _condition(statement, "aws:sourceaccount")
        if sources and not any(fnmatch.fnmatch(source, pattern) for pattern in sources):
            continue
        if sources and accounts:
            return Finding("queue policy", "pass", f"only {bucket} may send its events")
        allows_others = True
    if allows_others:
        why = "other buckets may send too: the policy lacks aws:SourceArn and aws:SourceAccount"
        return Finding(
            "queue policy",
            "warn",
            why,
            "add both conditions; `dreamdrop setup queue` prints the statement",
        )
    why = f"the queue does not let S3 send the events of {bucket}"
    return Finding(
        "queue policy",
        "fail",
        why,
        "run `dreamdrop setup queue --apply`, or add the statement that it prints",
    )


def _redrive(attributes: Mapping[str, str], attempts: int, dead: Mapping[str, str] | None) -> Finding:
    redrive = json.loads(attributes.get("RedrivePolicy") or "{}")
    if not redrive.get("deadLetterTargetArn"):
        why = "there is no dead-letter queue: a message that nobody understands is received until it expires"
        return Finding("dead letters", "fail", why, "run `dreamdrop setup queue --apply`")
    receives = int(redrive.get("maxReceiveCount", 0))
    name = redrive["deadLetterTargetArn"].rpartition(":")[2]
    least = max(LEAST_RECEIVES, attempts + 1)
    if receives < least:
        why = f"after {receives} receives a message goes to {name}; workers that stop or are slow cost receives too"
        fix = f"set maxReceiveCount to {max(RECEIVES, least)}"
        return Finding("dead letters", "fail" if receives <= attempts else "warn", why, fix)
    waiting = int((dead or {}).get("ApproximateNumberOfMessages", 0))
    if waiting:
        why = f"{waiting} message{'s' * (waiting != 1)} in {name}"
        return Finding("dead letters", "warn", why, "see them with `dreamdrop dead-letters list`")
    return Finding("dead letters", "pass", f"after {receives} receives a message goes to {name}")


def _sizes(attributes: Mapping[str, str]) -> Finding:
    most = int(attributes.get("MaximumMessageSize", MAX_BYTES))
    if most < EVENT_BYTES:
        why = f"a message may have {most:,} bytes; S3 drops events that are larger, and one may be {EVENT_BYTES:,}"
        return Finding("message size", "fail", why, f"set MaximumMessageSize to {MAX_BYTES}")
    return Finding("message size", "pass", f"up to {most:,} bytes; larger requests travel by claim check")


def _retention(attributes: Mapping[str, str], dead: Mapping[str, str] | None) -> Finding:
    seconds = int(attributes.get("MessageRetentionPeriod", RETENTION))
    days = f"{seconds / 86_400:g} days"
    if seconds < 86_400:
        why = f"a message that waits for {seconds / 3600:g} hours is lost"
        return Finding("retention", "warn", why, f"set MessageRetentionPeriod to {RETENTION}")
    if dead and int(dead.get("MessageRetentionPeriod", DEAD_RETENTION)) <= seconds:
        why = "dead letters are not kept longer than messages: at worst they expire as soon as they arrive"
        return Finding(
            "retention",
            "warn",
            why,
            f"set the dead-letter queue's MessageRetentionPeriod to {DEAD_RETENTION}",
        )
    return Finding("retention", "pass", f"a message is kept for {days}")


def _encryption(key: str) -> Finding:
    if key == "alias/aws/sqs":
        return Finding(
            "encryption",
            "fail",
            "the queue is encrypted with Amazon's key for SQS, which S3 may not use: S3 drops its events",
            "use SSE-SQS, or a key of yours whose policy gives s3.amazonaws.com kms:GenerateDataKey and kms:Decrypt",
        )
    return Finding(
        "encryption",
        "warn",
        "the queue is encrypted with a key of yours",
        "check that its policy gives s3.amazonaws.com kms:GenerateDataKey and kms:Decrypt",
    )


def _covers(entry: Mapping[str, Any], key: str) -> bool:
    if not any(event.startswith("s3:ObjectCreated:") for event in entry.get("Events", ())):
        return False
    rules = entry.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    for rule in rules:
        name, value = str(rule.get("Name", "")).lower(), str(rule.get("Value", ""))
        if (name == "prefix" and not key.startswith(value)) or (name == "suffix" and not key.endswith(value)):
            return False
    return True


def _is_s3(principal: Any) -> bool:
    if isinstance(principal, Mapping):
        return "s3.amazonaws.com" in _texts(principal.get("Service")) or "*" in _texts(principal.get("AWS"))
    return bool(principal == "*")


def _condition(statement: Mapping[str, Any], name: str) -> list[str]:
    """The values of a condition key, for any operator that is not a negation."""
    values: list[str] = []
    for operator, tests in (statement.get("Condition") or {}).items():
        if "not" not in operator.lower():
            values += [v for key, value in tests.items() if key.lower() == name for v in _texts(value)]
    return values


def _texts(value: Any) -> Iterable[str]:
    return [text for text in listed(value) if isinstance(text, str)]
