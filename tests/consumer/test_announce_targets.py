"""The targets that a setting names, and a real SQS and SNS server behind them."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from consumer.announce.announcer import Announcer
from consumer.announce.outbox import RetryPolicy, Target, Undelivered
from consumer.announce.targets import QueueTarget, TopicTarget, targets
from consumer.announce.webhook import Webhook
from schemas.completion import Completion, completion
from schemas.errors import Unsupported
from schemas.result import Frozen, Result
from tests.conftest import pretend_credentials

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/done"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:done"


def result(id: str = "cats/a") -> Result:
    return Result(id=id, status="succeeded", task="text2img", fingerprint="ab", request=Frozen(text="{}"))


def event(id: str = "cats/a") -> Completion:
    return completion(result(id), source="s3://bucket")


def named(*words: str, hosts: str = "hooks.example.com") -> list[Target]:
    return targets(words, secrets=SECRET, hosts=hosts, now=lambda: 1.7e9)


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh account on a server on loopback."""
    pretend_credentials(monkeypatch, moto_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield moto_url
    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")).close()


def received(url: str) -> list[dict[str, Any]]:
    """Every message that a queue holds."""
    sqs = boto3.Session().client("sqs")
    messages: list[dict[str, Any]] = []
    while True:
        answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
        if not answer.get("Messages"):
            return messages
        messages += answer["Messages"]


def new_queue(name: str, **attributes: str) -> str:
    return str(boto3.Session().client("sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])


async def deliver(word: str, *events: Completion) -> None:
    (target,) = named(word)
    try:
        for each in events:
            await target.deliver(each)
    finally:
        await target.close()


@pytest.mark.parametrize(
    "word",
    [
        QUEUE,
        "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/done",
        "https://eu-west-1.queue.amazonaws.com/123456789012/done",
        "https://sqs-fips.us-east-1.amazonaws.com/123456789012/done",
        "https://sqs.eu-west-1.api.aws/123456789012/done",
        "https://vpce-0a-b.sqs.eu-west-1.vpce.amazonaws.com/123456789012/done",
        "sqs+http://localhost:9324/000000000000/done",
        TOPIC,
        TOPIC + ".fifo",
        "arn:aws-us-gov:sns:us-gov-west-1:123456789012:done",
    ],
)
def test_a_queue_and_a_topic_are_told_by_their_names(word: str):
    """No allow-list and no secret: the credentials decide."""
    (target,) = targets([word], secrets="", hosts="", now=lambda: 0.0)
    assert isinstance(target, TopicTarget if word.startswith("arn:") else QueueTarget)


def test_several_targets_stand_in_one_setting():
    """Repeated, or separated by blanks as in a variable; each once."""
    made = named(f"{QUEUE} {TOPIC}", QUEUE, "https://hooks.example.com/x")
    assert [type(target) for target in made] == [QueueTarget, TopicTarget, Webhook]
    assert len({target.name for target in made}) == 3


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("done", "not an address for announcements"),
        (QUEUE + ".fifo", "standard queue"),
        ("arn:aws:sqs:eu-west-1:123456789012:done", "URL, not its ARN"),
        ("sqs+http://localhost:9324", "sqs+http://host:port/account/name"),
        ("sqs+http://user:pw@localhost/000000000000/done", "sqs+http://host:port/account/name"),
        ("http://localhost:9324/000000000000/done", "write sqs+ before it"),
        ("https://sqs.eu-west-1.amazonaws.com.evil.com/123456789012/done", "allow-list"),
        ("https://evil.com/sqs.eu-west-1.amazonaws.com/123456789012/done", "allow-list"),
        ("mailto:me@example.com", "not an address for announcements"),
    ],
)
def test_what_is_no_target_is_refused_with_a_hint(word: str, hint: str):
    """At the start, not at the first finished picture."""
    with pytest.raises(Unsupported, match=hint.replace("+", r"\+")):
        named(word)


@pytest.mark.anyio
async def test_a_queue_gets_the_event_as_its_message(aws: str):
    """The body is the CloudEvent; attributes tell its type to whoever filters."""
    url = new_queue("done")
    await deliver(f"sqs+{url}", event("cats/a"), event("cats/b"))
    messages = received(url)
    assert sorted(m["Body"] for m in messages) == sorted(
        e.to_json().decode() for e in map(event, ("cats/a", "cats/b"))
    )
    attributes = {name: value["StringValue"] for name, value in messages[0]["MessageAttributes"].items()}
    assert attributes == {"type": "dreamdrop.request.succeeded", "status": "succeeded", "task": "text2img"}


@pytest.mark.anyio
async def test_a_first_in_first_out_topic_discards_repeats(aws: str):
    """The event's id is its deduplication id."""
    sns, sqs = boto3.Session().client("sns"), boto3.Session().client("sqs")
    topic = sns.create_topic(Name="done.fifo", Attributes={"FifoTopic": "true"})["TopicArn"]
    url = new_queue("behind.fifo", FifoQueue="true")
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    await deliver(topic, event(), event())
    assert len(received(url)) == 1


@pytest.mark.anyio
async def test_a_topic_hands_the_event_to_its_subscribers(aws: str):
    """Filters work on the attributes: this queue wants failures only, that one everything."""
    sns, sqs = boto3.Session().client("sns"), boto3.Session().client("sqs")
    topic = sns.create_topic(Name="done")["TopicArn"]
    urls = [new_queue("all"), new_queue("failures")]
    for url, policy in zip(urls, ({}, {"status": ["failed"]}), strict=True):
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        attributes = {"RawMessageDelivery": "true"} | ({"FilterPolicy": json.dumps(policy)} if policy else {})
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=attributes)
    await deliver(topic, event())
    assert [[m["Body"] for m in received(url)] for url in urls] == [[event().to_json().decode()], []]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "word",
    [
        "sqs+{aws}/123456789012/none",
        "arn:aws:sns:us-east-1:123456789012:none",
        "sqs+http://127.0.0.1:1/1/none",
    ],
)
async def test_a_target_that_is_not_there_is_tried_again(aws: str, word: str):
    """It may be created in a minute; the trouble is said in the service's own word."""
    with pytest.raises(Undelivered, match=r"there is no queue|sns none answered 404|cannot be reached"):
        await deliver(word.format(aws=aws), event())


@pytest.mark.anyio
async def test_missing_credentials_are_a_trouble_of_the_target(aws: str, monkeypatch: pytest.MonkeyPatch):
    """A role that comes late costs a retry, not the worker."""
    url = new_queue("done")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Undelivered, match="no usable AWS credentials"):
        await deliver(f"sqs+{url}", event())


@pytest.mark.anyio
async def test_many_results_reach_a_queue_and_a_topic(aws: str):
    """Through the announcer, with everything at its defaults but the waits."""
    queue, behind = new_queue("done"), new_queue("behind")
    sns = boto3.Session().client("sns")
    topic = sns.create_topic(Name="done")["TopicArn"]
    arn = "arn:aws:sqs:us-east-1:123456789012:behind"
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    made = named(f"sqs+{queue}", topic)

    async def read(id: str) -> Result:
        return result(id)

    clock = asyncio.get_running_loop().time
    announcer = Announcer(made, read, clock, random.Random(1), policy=RetryPolicy(first=0.01, longest=0.05))
    ids = {f"r{i}" for i in range(30)}
    assert not any([announcer.may_forget(id) for id in ids])
    await announcer.drain(30.0)
    await announcer.close()
    assert all(announcer.may_forget(id) for id in ids)
    for url in (queue, behind):
        messages = await asyncio.to_thread(received, url)
        assert {json.loads(m["Body"])["subject"] for m in messages} == ids
