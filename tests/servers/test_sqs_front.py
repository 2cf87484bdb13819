"""The unkind queue is itself looked at, by the AWS library that everybody uses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.servers.sqs_front import Habits, SqsFront, answering


@pytest.fixture
def front() -> Iterator[SqsFront]:
    """A server on which a second lasts a twentieth."""
    with answering(SqsFront(Habits(hours=0.05))) as server:
        yield server


def client(front: SqsFront) -> Any:
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("sqs", endpoint_url=front.url, **keys)


def receive(sqs: Any, url: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, **more).get(
        "Messages", []
    )
    return found


def test_a_message_stays_invisible_until_its_time_is_up(front: SqsFront):
    """Then it comes again, counted, and the old receipt is worth nothing."""
    sqs, url = client(front), front.url + front.add("q")
    sqs.send_message(QueueUrl=url, MessageBody="one")
    [first] = receive(sqs, url, VisibilityTimeout=2, MessageSystemAttributeNames=["ApproximateReceiveCount"])
    assert receive(sqs, url) == []
    [second] = receive(sqs, url, WaitTimeSeconds=5)
    assert second["MessageId"] == first["MessageId"]
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"
    with pytest.raises(ClientError, match="ReceiptHandleIsInvalid"):
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=5)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])  # accepted, and not done
    assert front.waiting("q") == 1
    sqs.delete_message(QueueUrl=url, ReceiptHandle=second["ReceiptHandle"])
    assert front.waiting("q") == 0


def test_batches_name_what_failed(front: SqsFront):
    """Entry by entry; a stale receipt is the sender's fault."""
    sqs, url = client(front), front.url + front.add("q")
    entries = [{"Id": str(n), "MessageBody": f"m{n}"} for n in range(10)]
    assert len(sqs.send_message_batch(QueueUrl=url, Entries=entries)["Successful"]) == 10
    found = receive(sqs, url, VisibilityTimeout=600)
    assert {m["Body"] for m in found} == {f"m{n}" for n in range(10)}
    entries = [{"Id": "good", "ReceiptHandle": found[0]["ReceiptHandle"], "VisibilityTimeout": 0}]
    entries.append({"Id": "bad", "ReceiptHandle": "nobody.s", "VisibilityTimeout": 0})
    answer = sqs.change_message_visibility_batch(QueueUrl=url, Entries=entries)
    assert [entry["Id"] for entry in answer["Successful"]] == ["good"]
    assert [entry["SenderFault"] for entry in answer["Failed"]] == [True]


def test_what_is_received_too_often_moves_to_the_dead_letter_queue(front: SqsFront):
    """As the redrive policy says."""
    policy = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:dead", "maxReceiveCount": 2}
    front.add("dead")
    sqs, url = client(front), front.url + front.add("q", RedrivePolicy=json.dumps(policy))
    sqs.send_message(QueueUrl=url, MessageBody="poison")
    for _ in range(2):
        assert len(receive(sqs, url, VisibilityTimeout=0)) == 1
    assert receive(sqs, url) == []
    assert (front.waiting("q"), front.waiting("dead")) == (0, 1)


def test_habits_strike_and_are_counted(front: SqsFront):
    """A message shown twice, an announcement lost, a delete that does nothing."""
    sqs, url = client(front), front.url + front.add("q")
    front.habits = Habits(twice=1)
    sqs.send_message(QueueUrl=url, MessageBody="one")
    [first] = receive(sqs, url)
    [again] = receive(sqs, url)
    assert first["MessageId"] == again["MessageId"]
    front.habits = Habits(lost=1, undeleted=1)
    front.announce("q", "bucket", "requests/a.json")
    sqs.delete_message(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"])
    assert front.waiting("q") == 1
    assert {habit: front.counts[habit] for habit in ("twice", "lost", "undeleted")} == {
        "twice": 2,
        "lost": 1,
        "undeleted": 1,
    }


def test_a_long_poll_ends_when_something_comes(front: SqsFront):
    """It does not wait for its whole time."""
    sqs, url = client(front), front.url + front.add("q")
    began = time.monotonic()
    front.announce("q", "bucket", "requests/a.json")
    assert len(receive(sqs, url, WaitTimeSeconds=20)) == 1
    assert time.monotonic() - began < 15
