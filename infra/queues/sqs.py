"""An SQS queue, through aiobotocore, in calls of up to ten messages.

A queue guarantees little: a message may be delivered twice and in any order, and a receipt is valid only
until the message is visible again. So an answer proves nothing about the work itself: each method says which
messages the queue accepted and which it did not. Every call is retried with backoff until `patience` is
used up, and may be cancelled at any time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from infra.aws import FOREIGN, LazyClient, config_for, new_session, queue_endpoint, shown
from infra.backoff import backoff
from infra.gather import gather_bounded
from infra.queues.message import (
    BATCH,
    MAX_BYTES,
    Failed,
    Message,
    QueueFacts,
    facts_of,
    failed_of,
    fitting,
    is_sendable,
    message_of,
    size_of,
    tens,
)
from infra.queues.sqs_errors import is_denied, is_transient, translated
from schemas.errors import QueueUnavailable, Rejected, TooLarge, Unsupported

__all__ = ["Message", "Queue", "QueueFacts"]

LONG_POLL = 20.0  # seconds that a receive may wait at most
ANSWER = 10.0  # seconds for an answer, beyond a long poll's own wait
AT_ONCE = 4  # calls in flight while sending
TRIES = 4  # of an entry that failed in a call that succeeded


class Queue:
    """The queue at a URL; belongs to the event loop that first uses it. Use `async with`.

    Credentials, profile and endpoint are those that boto3 would use (`AWS_ENDPOINT_URL_SQS`, ...);
    the region is the one in the queue's URL. A URL that is not Amazon's is itself the endpoint, unless
    another one is configured.

    Every method raises `QueueUnavailable` when the queue does not answer, and `Unsupported` when it
    does not exist or denies access.
    """

    def __init__(self, url: str, *, patience: float = 30.0, rng: random.Random | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
            raise Unsupported(
                f"{shown(url) if parts.hostname else 'the given text'} is not a queue: give an SQS queue's URL, such "
                "as https://sqs.eu-west-1.amazonaws.com/123456789012/dreamdrop"
            )
        if parts.path.endswith(".fifo"):
            raise Unsupported(
                f"{shown(url)} is a FIFO queue: S3 cannot send to it, and one request would block the others; "
                "create a standard queue"
            )
        self.url = shown(url)  # a password in it is neither sent nor logged
        self._patience = patience  # seconds for which a call is tried
        self._rng = rng or random.Random()
        self._client = LazyClient(self._new_client)
        self._limit = 0  # bytes of a message; 0: not asked yet

    async def open(self) -> None:
        """Connect, and check early that we can use the queue."""
        try:
            await self._attributes("QueueArn")
        except Unsupported as error:
            if not _is_denied(error):  # a worker may be allowed to receive and not to read attributes
                await self.close()  # here, because `async with` closes only what was opened
                raise
        except QueueUnavailable:
            await self.close()
            raise

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def receive(self, most: int, *, wait: float = 20.0, visibility: float = 60.0) -> list[Message]:
        """Wait for messages.

        Args:
            most: at most so many, 1 to 10.
            wait: whole seconds, 0 to 20, until an empty answer; longer if the call is retried.
            visibility: whole seconds for which they are hidden from others. It should be more than
                `wait` + 10, so that a message whose answer was late can still be renewed.
        """
        answer = await self._call(
            "receive_message",
            "receive from",
            wait + ANSWER,
            MaxNumberOfMessages=max(1, min(most, BATCH)),
            WaitTimeSeconds=int(wait),
            VisibilityTimeout=int(visibility),
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
            MessageAttributeNames=["All"],
        )
        return [message_of(entry) for entry in answer.get("Messages", ())]

    async def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]:
        """Hide messages for `visibility` seconds from now; 0 makes them visible at once.

        Returns:
            Those whose receipt is no longer valid: they became visible again, or were deleted.

        Raises:
            QueueUnavailable: some were neither renewed nor refused.
        """
        gone, left = [], 0
        for batch in tens(messages):
            entries = [
                {"ReceiptHandle": message.receipt, "VisibilityTimeout": int(visibility)} for message in batch
            ]
            failed = await self._batch("change_message_visibility_batch", "renew messages of", entries)
            gone += [batch[number] for number, failure in failed.items() if failure.refused]
            left += sum(not failure.refused for failure in failed.values())
        if left:
            raise QueueUnavailable(f"{shown(self.url)} did not renew {left} of {len(messages)} messages")
        return gone

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Delete messages. Seldom, a deleted message is delivered again.

        Returns:
            Those that could not be deleted, because the receipt is no longer valid or the queue failed;
            they will be delivered again.
        """
        stayed: list[Message] = []
        for batch in tens(messages):
            entries = [{"ReceiptHandle": message.receipt} for message in batch]
            failed = await self._batch("delete_message_batch", "delete from", entries)
            stayed += [batch[number] for number in failed]
        return stayed

    async def send(self, bodies: Sequence[str], *, attributes: Mapping[str, str] | None = None) -> list[str]:
        """Send messages, ten at a time or as many as fit in a call.

        Returns:
            Their ids, in the order of the bodies. A message whose answer was lost may be sent twice.

        Raises:
            TooLarge: a body is over the queue's limit; nothing was sent.
            Rejected: a body contains a character that SQS does not accept; nothing was sent.
            QueueUnavailable: the message says how many were not sent.
        """
        limit = await self.max_bytes()
        sizes = [size_of(body, attributes) for body in bodies]
        for number, (body, size) in enumerate(zip(bodies, sizes, strict=True)):
            if size > limit:
                raise TooLarge(f"message {number + 1} of {len(bodies)}", size, limit)
            if not is_sendable(body):
                raise Rejected(
                    "invalid_json",
                    f"message {number + 1} of {len(bodies)} contains a control character that a queue does not "
                    "accept: write it as \\u....",
                )
        typed = {k: {"DataType": "String", "StringValue": v} for k, v in (attributes or {}).items()}
        ids: list[str] = [""] * len(bodies)
        errors: list[QueueUnavailable | Unsupported] = []

        async def call(numbers: list[int]) -> None:
            if errors:
                return  # after the first failure nothing more is sent
            entries = [{"MessageBody": bodies[n], "MessageAttributes": typed} for n in numbers]
            sent: dict[int, str] = {}
            try:
                failed = await self._batch("send_message_batch", "send to", entries, sent)
            except (QueueUnavailable, Unsupported) as error:
                errors.append(error)
            else:
                if failed:
                    codes = ", ".join(sorted({failure.code for failure in failed.values()}))
                    errors.append(QueueUnavailable(f"{self.url} does not accept every message: {codes}"))
            for place, id in sent.items():
                ids[numbers[place]] = id

        await gather_bounded(fitting(sizes, limit), AT_ONCE, call)
        if errors:
            raise type(errors[0])(f"{errors[0]} ({ids.count('')} of {len(ids)} not sent)") from errors[0]
        return ids

    async def max_bytes(self) -> int:
        """The largest message that the queue accepts, attributes included; read once."""
        if not self._limit:
            try:
                attributes = await self._attributes("MaximumMessageSize")
            except Unsupported as error:
                if not _is_denied(error):
                    raise
                attributes = {}  # a producer may be allowed to send and not to read attributes
            self._limit = min(int(attributes.get("MaximumMessageSize", MAX_BYTES)), MAX_BYTES)
        return self._limit

    async def facts(self) -> QueueFacts:
        """How the queue is set up, and approximately how full it is."""
        return facts_of(await self._attributes("All"))

    async def url_of(self, arn: str) -> str:
        """The URL of another queue on the same server, such as the dead-letter queue."""
        *_, account, name = arn.split(":")
        answer = await self._call(
            "get_queue_url",
            "look up a queue beside",
            ANSWER,
            of=False,
            QueueName=name,
            QueueOwnerAWSAccountId=account,
        )
        return urlsplit(self.url)._replace(path=urlsplit(str(answer["QueueUrl"])).path).geturl()

    async def _attributes(self, *names: str) -> dict[str, str]:
        answer = await self._call("get_queue_attributes", "look at", ANSWER, AttributeNames=list(names))
        return dict(answer.get("Attributes", {}))

    async def _batch(
        self, verb: str, what: str, entries: Sequence[Mapping[str, Any]], sent: dict[int, str] | None = None
    ) -> dict[int, Failed]:
        """Send up to ten entries, and those that failed for the moment again, a few times.

        Args:
            sent: receives the message ids, by the index of the entry.

        Returns:
            The failures, by the index of the entry.
        """
        left = list(range(len(entries)))
        refused: dict[int, Failed] = {}
        for last in [False] * (TRIES - 1) + [True]:
            numbered = [{"Id": str(place), **entries[place]} for place in left]
            answer = await self._call(verb, what, ANSWER, Entries=numbered)
            if sent is not None:
                sent |= {int(entry["Id"]): entry["MessageId"] for entry in answer.get("Successful", ())}
            failed = {int(entry["Id"]): failed_of(entry) for entry in answer.get("Failed", ())}
            refused |= {place: failure for place, failure in failed.items() if failure.refused}
            busy = {place: failure for place, failure in failed.items() if not failure.refused}
            if not busy or last:
                break
            left = list(busy)
            await asyncio.sleep(self._rng.uniform(0, 0.4))
        return refused | busy

    async def _call(
        self, verb: str, what: str, seconds: float, *, of: bool = True, **fields: Any
    ) -> dict[str, Any]:
        """Call, and retry while that may help. `of`: whether the call names this queue."""
        give_up = time.monotonic() + self._patience
        if of:
            fields["QueueUrl"] = self.url
        waits = backoff(0.1, 2.5, self._rng)
        while True:
            try:
                client = await self._client()
                async with asyncio.timeout(seconds):
                    answer: dict[str, Any] = await getattr(client, verb)(**fields)
                    return answer
            except FOREIGN as error:
                wait = next(waits)
                if not is_transient(error) or time.monotonic() + wait > give_up:
                    endpoint = self._client.endpoint or self.url
                    raise translated(error, f"cannot {what} the queue", self.url, endpoint) from error
            await asyncio.sleep(wait)

    def _new_client(self) -> Any:
        session = new_session()
        region, endpoint = queue_endpoint(self.url, session)
        config = config_for(session, tries=1, read_timeout=LONG_POLL + ANSWER)  # `_call` tries again
        return session.create_client("sqs", region_name=region, endpoint_url=endpoint, config=config)


def _is_denied(error: Unsupported) -> bool:
    return isinstance(error.__cause__, Exception) and is_denied(error.__cause__)
