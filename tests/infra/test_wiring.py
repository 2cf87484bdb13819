"""What is judged of a queue's wiring, and what is changed in one that others set up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from infra.queues.setup_check import Finding, judge_notifications, judge_queue
from infra.queues.setup_documents import (
    Wiring,
    changed_attributes,
    overlapping,
    partition_of,
    with_notifications,
    with_statement,
)

WISH = Wiring("art", "studio/", "dreamdrop", "123456789012", "eu-west-1")
ARN = "arn:aws:sqs:eu-west-1:123456789012:dreamdrop"
GOOD = {"QueueArn": ARN, **WISH.attributes()}


@pytest.mark.parametrize(
    ("region", "arn", "host"),
    [
        ("eu-west-1", "arn:aws:s3:::art", "sqs.eu-west-1.amazonaws.com"),
        ("cn-north-1", "arn:aws-cn:s3:::art", "sqs.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "arn:aws-us-gov:s3:::art", "sqs.us-gov-west-1.amazonaws.com"),
    ],
)
def test_other_partitions_have_other_names(region: str, arn: str, host: str):
    """China and GovCloud spell ARNs, and China addresses, in their own way."""
    wish = replace(WISH, region=region, partition=partition_of(region))
    assert wish.statement()["Condition"]["ArnEquals"]["aws:SourceArn"] == arn
    assert wish.url == f"https://{host}/123456789012/dreamdrop"


def judged(check: str, bucket: str = "art", attempts: int = 3, **attributes: Any) -> Finding:
    """The finding of one check on a good queue with some attributes changed."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in attributes.items()}
    found = judge_queue(GOOD | texts, bucket, attempts=attempts)
    return next(finding for finding in found if finding.check == check)


def policy(**changed: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{**WISH.statement(), **changed}]}


def test_what_is_printed_is_judged_good():
    """The documents pass their own judge."""
    assert [f for f in judge_queue(GOOD, "art", attempts=3) if f.status != "pass"] == []
    configuration = {"QueueConfigurations": WISH.notifications()}
    assert judge_notifications(configuration, ARN, "studio/").status == "pass"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (policy(), "pass"),
        (policy(Action=["SQS:*"]), "pass"),
        (policy(Condition={"ArnLike": {"AWS:SourceArn": "arn:aws:s3:*:*:art"}}), "warn"),
        (policy(Principal="*"), "pass"),
        (policy(Condition={}), "warn"),
        (policy(Effect="Deny"), "fail"),
        (policy(Principal={"Service": "sns.amazonaws.com"}), "fail"),
        (policy(Action="sqs:ReceiveMessage"), "fail"),
        (policy(Condition={"ArnEquals": {"aws:SourceArn": "arn:aws:s3:::other"}}), "fail"),
        ("", "fail"),
    ],
)
def test_a_policy_lets_exactly_this_bucket_send(text: Any, status: str):
    """Nobody: fail. More than this bucket: warn."""
    found = judged("queue policy", Policy=text)
    assert found.status == status
    assert bool(found.fix) == (status != "pass")


@pytest.mark.parametrize(
    ("receives", "attempts", "status"),
    [(10, 3, "pass"), (5, 3, "pass"), (4, 3, "warn"), (3, 3, "fail"), (6, 6, "fail"), (1, 0, "warn")],
)
def test_dead_letters_must_leave_room_for_the_workers_own_attempts(receives: int, attempts: int, status: str):
    """At least five receives, and more than a worker tries by itself."""
    redrive = {"deadLetterTargetArn": f"{ARN}-dead", "maxReceiveCount": receives}
    assert judged("dead letters", attempts=attempts, RedrivePolicy=redrive).status == status


@pytest.mark.parametrize(
    ("check", "attributes", "words"),
    [
        ("dead letters", {"RedrivePolicy": ""}, "there is no dead-letter queue"),
        ("message size", {"MaximumMessageSize": "1024"}, "S3 drops events"),
        ("retention", {"MessageRetentionPeriod": "3600"}, "waits for 1 hours is lost"),
        ("encryption", {"KmsMasterKeyId": "alias/aws/sqs"}, "S3 may not use"),
        ("queue", {"QueueArn": f"{ARN}.fifo"}, "FIFO"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(check: str, attributes: dict[str, str], words: str):
    """Each fault has its own sentence and a fix."""
    found = judged(check, **attributes)
    assert words in found.found
    assert found.status != "pass"
    assert found.fix


def test_waiting_dead_letters_are_a_warning():
    """They do no harm by themselves, but somebody should look."""
    found = judge_queue(GOOD, "art", dead={"ApproximateNumberOfMessages": "2"})
    assert [(f.status, f.found) for f in found if f.check == "dead letters"] == [
        ("warn", "2 messages in dreamdrop-dead")
    ]


def entry(prefix: str = "studio/requests/", suffix: str = "", **changed: Any) -> dict[str, Any]:
    rules = [{"Name": "Prefix", "Value": prefix}, {"Name": "Suffix", "Value": suffix}]
    return {
        "QueueArn": ARN,
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": rules}},
        **changed,
    }


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ([entry()], "pass"),
        ([entry(suffix=".json")], "fail"),
        ([entry(suffix=".json"), entry(suffix=".jsonl")], "pass"),
        ([entry(prefix="")], "warn"),
        ([entry(prefix="requests/")], "fail"),
        ([entry(Events=["s3:ObjectRemoved:*"])], "fail"),
        ([entry(QueueArn="arn:aws:sqs:eu-west-1:123456789012:other")], "fail"),
        ([], "fail"),
    ],
)
def test_new_requests_must_be_announced_and_results_should_not(entries: list[dict[str, Any]], status: str):
    """Both suffixes below the store's own requests/; our own output only costs messages."""
    assert judge_notifications({"QueueConfigurations": entries}, ARN, "studio/").status == status


def test_only_what_is_missing_or_too_small_is_changed():
    """Longer times, another dead-letter queue and other people's statements stay."""
    theirs = {"Sid": "Backup", "Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage"}
    has = {
        "VisibilityTimeout": "900",
        "ReceiveMessageWaitTimeSeconds": "0",
        "MessageRetentionPeriod": "1209600",
        "MaximumMessageSize": "262144",
        "RedrivePolicy": json.dumps({"deadLetterTargetArn": "arn:of:another", "maxReceiveCount": 2}),
        "Policy": json.dumps({"Version": "2012-10-17", "Id": "old", "Statement": theirs}),
    }
    new = changed_attributes(has, WISH.attributes())
    assert new.keys() == {"ReceiveMessageWaitTimeSeconds", "MaximumMessageSize", "RedrivePolicy", "Policy"}
    assert json.loads(new["RedrivePolicy"]) == {
        "deadLetterTargetArn": "arn:of:another",
        "maxReceiveCount": "10",
    }
    merged = json.loads(new["Policy"])
    assert (merged["Id"], [s["Sid"] for s in merged["Statement"]]) == (
        "old",
        ["Backup", "DreamdropBucketNotifications"],
    )
    assert changed_attributes(has | new, WISH.attributes()) == {}


def test_only_our_own_older_entries_are_replaced():
    """The same bucket's statement and the same queue's and prefix's notification; other stores' stay."""
    old = WISH.statement() | {"Resource": "an older one"}
    other = replace(WISH, bucket="photos").statement() | {"Sid": "DreamdropBucketNotificationsPhotos"}
    statements = with_statement([old, other], WISH.statement())
    assert [s["Resource"] for s in statements] == [WISH.arn("dreamdrop")] * 2
    assert len({s["Sid"] for s in statements}) == 2

    older = [entry | {"Events": ["s3:ObjectCreated:Put"]} for entry in WISH.notifications()]
    lab = replace(WISH, prefix="lab/").notifications()
    entries = with_notifications([*older, *lab], WISH.notifications())
    assert [entry["Events"] for entry in entries] == [["s3:ObjectCreated:*"]] * 4
    assert len({entry["Id"] for entry in entries}) == 4
    assert with_notifications(entries, WISH.notifications()) == entries


def test_a_notification_that_overlaps_is_named():
    """S3 refuses two for one file; one of another prefix or of removals is none of them."""
    theirs = [
        {"Id": "all", "QueueArn": "x", "Events": ["s3:ObjectCreated:Put"]},
        {"Id": "gone", "QueueArn": "x", "Events": ["s3:ObjectRemoved:*"]},
        replace(WISH, prefix="lab/", queue="x").notifications()[0] | {"Id": "lab"},
        replace(WISH, queue="x").notifications()[0] | {"Id": "same"},
        *WISH.notifications(),
    ]
    assert [e["Id"] for e in overlapping(theirs, WISH.notifications())] == ["all", "same"]
