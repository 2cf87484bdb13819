"""A queue as the worker and the clients use it, on a queue server of its own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from infra.aws import new_session, queue_endpoint
from infra.queues.message import fitting, is_sendable, size_of
from infra.queues.sqs import Queue
from schemas.errors import Rejected, TooLarge

pytestmark = pytest.mark.anyio

Make = Callable[..., str]


# The verbs ----------------------------------------------------------------------------------------


async def test_what_is_sent_is_received_and_deleted(queue: Queue):
    """A message keeps its text and attributes; once deleted it does not come again."""
    body = json.dumps({"prompt": "kätze 🐈"}, ensure_ascii=False)
    (id,) = await queue.send([body], attributes={"lane": "express"})

    (message,) = await queue.receive(10, wait=1)
    assert (message.id, message.body, message.receives) == (id, body, 1)
    assert message.attributes == {"lane": "express"}
    assert await queue.delete([message]) == []
    facts = await queue.facts()
    assert (facts.visible, facts.in_flight) == (0, 0)


async def test_more_than_ten_go_in_batches(queue: Queue):
    """Sending, renewing and deleting take any number; a receive takes ten at most."""
    ids = await queue.send([f"message {n}" for n in range(25)])
    assert len(set(ids)) == 25

    found = [message for _ in range(3) for message in await queue.receive(10, wait=0)]
    assert {message.id for message in found} == set(ids)
    assert await queue.renew(found, 120) == []
    assert (await queue.facts()).in_flight == 25
    assert await queue.delete(found) == []
    assert (await queue.facts()).in_flight == 0


async def test_an_empty_queue_answers_after_the_wait(queue: Queue):
    """No message is no error."""
    assert await queue.receive(1, wait=0) == []
    assert await queue.receive(1, wait=1) == []


async def test_nothing_asks_for_nothing(queue: Queue):
    """Empty lists cost no call."""
    assert await queue.renew([], 60) == []
    assert await queue.delete([]) == []
    assert await queue.send([]) == []


async def test_a_message_given_back_is_received_again_at_once(queue: Queue):
    """Visibility 0 shows it to others; the count of receives goes up."""
    await queue.send(["work"])
    (first,) = await queue.receive(1, wait=1)
    assert await queue.receive(1, wait=0) == []
    assert await queue.renew([first], 0) == []

    (again,) = await queue.receive(1, wait=1)
    assert (again.id, again.receives) == (first.id, 2)
    assert again.receipt != first.receipt


async def test_a_receipt_that_is_no_longer_good_is_named(queue: Queue):
    """Of three messages one was deleted meanwhile: only that one comes back from renewing."""
    await queue.send(["a", "b", "c"])
    found = await queue.receive(3, wait=1)
    await queue.delete(found[:1])

    assert await queue.renew(found, 60) == found[:1]
    assert await queue.renew([replace(found[1], receipt="made up")], 60) != []


async def test_facts_tell_how_the_queue_is_set_up(make: Make):
    """Seconds, the dead-letter queue and where it is."""
    dead = make()
    account, name = dead.rsplit("/", 2)[1:]
    arn = f"arn:aws:sqs:us-east-1:{account}:{name}"
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "7"})
    async with Queue(make(RedrivePolicy=redrive, VisibilityTimeout="90")) as queue:
        facts = await queue.facts()
        assert (facts.visibility, facts.dead_letters) == (90, arn)
        assert (await queue.url_of(arn)).rsplit("/", 1)[-1] == name


async def test_a_queue_without_dead_letters_says_so(queue: Queue):
    """None, not a made-up default."""
    assert (await queue.facts()).dead_letters is None


# Sizes --------------------------------------------------------------------------------------------


async def test_a_message_over_the_limit_is_refused_before_anything_is_sent(make: Make):
    """The queue's own limit counts, with attributes; the small message before it stays here, too."""
    async with Queue(make(MaximumMessageSize="1024")) as queue:
        with pytest.raises(TooLarge, match=r"message 2 of 2 is 1,025 bytes; the limit is 1,024 bytes"):
            await queue.send(["small", "x" * 1025])
        with pytest.raises(TooLarge):
            await queue.send(["x" * 1020], attributes={"lane": "express"})
        assert (await queue.facts()).visible == 0
        assert len(await queue.send(["x" * 1024] * 12)) == 12


async def test_a_batch_is_never_over_the_limit(queue: Queue):
    """Four messages of 400 KB do not fit in one call of 1 MiB."""
    ids = await queue.send([letter * 400_000 for letter in "abcd"])
    assert len(set(ids)) == 4


async def test_what_a_queue_cannot_carry_is_refused_in_words(queue: Queue):
    """Control characters would be refused by the queue; they are named before anything is sent."""
    assert [text for text in ("\x00", "\uffff", "") if is_sendable(text)] == []
    assert is_sendable('{"prompt": "a\tb\n🐈"}')
    with pytest.raises(Rejected, match="control character"):
        await queue.send(["fine", "not \x01 fine"])
    assert (await queue.facts()).visible == 0


def test_neighbours_share_a_call():
    """Ten at most, and no more bytes than one call takes."""
    assert list(fitting([1] * 12, 100)) == [list(range(10)), [10, 11]]
    assert list(fitting([60, 60, 40, 1], 100)) == [[0], [1, 2], [3]]
    assert size_of("ä", {"k": "v"}) == 2 + len("kvString")


# Where a queue is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", ("eu-west-1", None)),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/1/q", ("us-gov-west-1", None)),
        ("https://eu-central-1.queue.amazonaws.com/1/q", ("eu-central-1", None)),
        ("https://queue.amazonaws.com/1/q", ("us-east-1", None)),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", ("cn-north-1", None)),
        ("http://127.0.0.1:4566/0/q", ("us-west-2", "http://127.0.0.1:4566")),
        ("http://[::1]:4566/0/q", ("us-west-2", "http://[::1]:4566")),
        ("https://u:p@queues.example/0/q", ("us-west-2", "https://queues.example")),
        (
            "https://vpce-1-2.sqs.eu-west-1.vpce.amazonaws.com/1/q",
            ("eu-west-1", "https://vpce-1-2.sqs.eu-west-1.vpce.amazonaws.com"),
        ),
    ],
)
def test_a_queues_address_tells_where_to_ask(
    make: Make, monkeypatch: pytest.MonkeyPatch, url: str, expected: Any
):
    """Amazon's addresses tell the region; any other address is the endpoint itself."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert queue_endpoint(url, new_session()) == expected
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:1")
    assert queue_endpoint(url, new_session())[1] is None, (
        "what is configured counts for more than the address"
    )
