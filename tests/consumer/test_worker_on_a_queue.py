"""A worker with an SQS queue: a message announces work, and the bucket says what has become of it."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.worker_process import worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.s3_front import S3Front

CAT = {"prompt": "a cat", "steps": 1, "seed": 3}


class Studio:
    """What a pipeline's author has: a bucket, a queue with a dead-letter queue, and boto3."""

    def __init__(self, s3: str, sqs: str) -> None:
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        self.bucket = boto3.resource("s3", endpoint_url=s3, **keys).Bucket("bucket")
        self.sqs = boto3.client("sqs", endpoint_url=sqs, **keys)
        name = secrets.token_hex(6)
        self.dead = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["QueueArn"])["Attributes"]
        self.url = self.sqs.create_queue(
            QueueName=name,
            Attributes={
                "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn["QueueArn"], "maxReceiveCount": "2"})
            },
        )["QueueUrl"]

    def send(self, document: Any) -> str:
        body = document if isinstance(document, str) else json.dumps(document)
        return str(self.sqs.send_message(QueueUrl=self.url, MessageBody=body)["MessageId"])

    def announce(self, key: str, *, bucket: str = "bucket") -> str:
        """The message that S3 sends for a new object; the key is already encoded."""
        record = {
            "eventVersion": "2.5",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": {"key": key, "sequencer": "01"}},
        }
        return self.send({"Records": [record]})

    def depth(self, url: str = "") -> int:
        """Messages in a queue, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counts = self.sqs.get_queue_attributes(QueueUrl=url or self.url, AttributeNames=names)["Attributes"]
        return sum(int(counts[name]) for name in names)

    def result(self, id: str, seconds: float = 120.0) -> dict[str, Any]:
        key = f"results/{id}/result.json"
        wait_for(lambda: list(self.bucket.objects.filter(Prefix=key)), f"no {key}", seconds)
        result: dict[str, Any] = json.loads(self.bucket.Object(key).get()["Body"].read())
        return result


def wait_for(answer: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    ends = time.monotonic() + seconds
    while not (value := answer()):
        assert time.monotonic() < ends, what
        time.sleep(0.05)
    return value


@pytest.fixture
def studio(s3_front: S3Front, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A bucket whose creates are atomic, and queues of another server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto_url)
    return Studio(s3_front.url, moto_url)


def test_an_announced_file_is_drawn_and_its_message_deleted(studio: Studio):
    """The key in the event is form-encoded; the message is deleted when the result exists."""
    studio.bucket.put_object(Key="requests/a b+c/kätze.json", Body=json.dumps(CAT).encode())
    studio.announce("requests/a+b%2Bc/k%C3%A4tze.json")
    with worker("s3://bucket", "--queue", studio.url):
        keys = wait_for(
            lambda: [
                o.key for o in studio.bucket.objects.filter(Prefix="results/") if "result.json" in o.key
            ],
            "no result",
        )
        wait_for(lambda: studio.depth() == 0, "the message stays")
    assert json.loads(studio.bucket.Object(keys[0]).get()["Body"].read())["status"] == "succeeded"


def test_a_manifest_sent_straight_to_the_queue_is_drawn(studio: Studio):
    """Under its own id, else under the message's; an invalid one gets a result and is deleted too."""
    studio.send({**CAT, "id": "mine"})
    unnamed = studio.send(CAT)
    faulty = studio.send({**CAT, "stepps": 5})
    with worker("s3://bucket", "--queue", studio.url):
        assert studio.result("mine")["status"] == "succeeded"
        assert studio.result(f"queue/{unnamed}")["status"] == "succeeded"
        answer = studio.result(f"queue/{faulty}")
        wait_for(lambda: studio.depth() == 0, "messages stay")
    assert answer["status"] == "failed"
    assert answer["failure"]["field"] == "stepps"


def test_a_claim_check_brings_a_body_that_no_message_can_hold(studio: Studio):
    """The message names the object."""
    from schemas.events import reference

    studio.bucket.put_object(Key="requests/big.json", Body=json.dumps(CAT).encode())
    studio.send(reference("s3://bucket/requests/big.json"))
    with worker("s3://bucket", "--queue", studio.url):
        assert studio.result("big")["status"] == "succeeded"
        wait_for(lambda: studio.depth() == 0, "the message stays")


def test_duplicates_and_late_events_draw_nothing_twice(studio: Studio):
    """One event comes five times, once after the end; other events do not concern a request."""
    studio.bucket.put_object(Key="requests/cat.json", Body=json.dumps(CAT).encode())
    for _ in range(4):
        studio.announce("requests/cat.json")
    studio.announce("results/other/result.json")
    studio.announce("requests/gone.json")
    studio.send({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bucket"})
    with worker("s3://bucket", "--queue", studio.url):
        assert studio.result("cat")["attempts"] == 1
        studio.announce("requests/cat.json")
        wait_for(lambda: studio.depth() == 0, "messages stay")
    assert len([o for o in studio.bucket.objects.filter(Prefix="results/cat/")]) == 2


def test_what_nobody_understands_ends_in_the_dead_letter_queue(studio: Studio):
    """The worker never deletes it, nor events of other buckets; the log says why."""
    studio.send("hello?")
    studio.announce("requests/cat.json", bucket="somebody-elses")
    studio.send({**CAT, "id": "good"})
    with worker("s3://bucket", "--queue", studio.url) as process:
        assert studio.result("good")["status"] == "succeeded"
        wait_for(lambda: studio.depth(studio.dead) == 2, "not in the dead-letter queue")
        assert studio.depth() == 0
        process.terminate()
        _, log = process.communicate(timeout=120)
    assert "hello" not in log
    assert "somebody-elses" in log


def test_a_lost_notification_is_made_up_for(studio: Studio):
    """Listing finds what has been in the inbox for too long; here `--reconcile` is short."""
    studio.bucket.put_object(Key="requests/unheard.json", Body=json.dumps(CAT).encode())
    with worker("s3://bucket", "--queue", studio.url, "--reconcile", "0.5"):
        assert studio.result("unheard")["status"] == "succeeded"


def test_a_batch_on_a_queue_needs_no_events_for_its_rows(studio: Studio):
    """Its worker looks for the rows itself."""
    rows = b"".join(json.dumps({**CAT, "seed": i}).encode() + b"\n" for i in range(5))
    studio.bucket.put_object(Key="requests/many.jsonl", Body=rows)
    studio.announce("requests/many.jsonl")
    with worker("s3://bucket", "--queue", studio.url):
        assert studio.result("many")["batch"]["counts"]["succeeded"] == 5
        wait_for(lambda: studio.depth() == 0, "the message stays")


def test_a_stopped_worker_gives_its_messages_back_at_once(studio: Studio):
    """Another worker finishes them, without waiting for a visibility timeout."""
    for number in range(6):
        studio.send({**CAT, "id": f"slow-{number}", "steps": 30})
    with worker(
        "s3://bucket", "--queue", studio.url, "--grace", "0.2", null={"seconds_per_step": 0.3}
    ) as first:
        wait_for(lambda: list(studio.bucket.objects.filter(Prefix="claims/")), "nothing is claimed")
        first.terminate()
        first.wait(120)
    with worker("s3://bucket", "--queue", studio.url):
        answers = [studio.result(f"slow-{number}") for number in range(6)]
        wait_for(lambda: studio.depth() == 0, "messages stay")
    assert {answer["status"] for answer in answers} == {"succeeded"}
    assert {answer["attempts"] for answer in answers} == {1}


def test_an_express_queue_is_served_first_and_does_not_starve_the_other(studio: Studio, moto_url: str):
    """With both full, three of four requests that begin are express; the others are not starved."""
    express = studio.sqs.create_queue(QueueName=secrets.token_hex(6))["QueueUrl"]
    for number in range(30):
        studio.sqs.send_message(QueueUrl=express, MessageBody=json.dumps({**CAT, "id": f"e{number}"}))
        studio.send({**CAT, "id": f"b{number}"})
    options = ["--queue", express, "--queue", studio.url, "--max-rows", "4"]
    with worker("s3://bucket", *options, null={"seconds_per_step": 0.05}):
        results = {f"{kind}{n}": studio.result(f"{kind}{n}") for kind in "eb" for n in range(30)}
    order = sorted(results, key=lambda id: results[id]["finished_at"])
    half = order[:30]
    assert sum(id.startswith("e") for id in half) > sum(id.startswith("b") for id in half) > 2
