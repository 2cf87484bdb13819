"""An SQS queue, through aiobotocore: five verbs, in batches of ten.

A queue promises little: a message may come twice, in any order, and a receipt is good only until
the message is shown again. So no answer here proves anything about the work itself; a verb says
what the queue took, and names the messages for which it did not. Every call is repeated with
jittered waits until `patience` is used up, and may be cancelled at any time.
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
AT_ONCE = 4  # calls that send at the same time
TRIES = 4  # of a single entry that the queue could not serve, in a call that it did


class Queue:
    """The queue at a URL; belongs to the event loop that first uses it. Use `async with`.

    Credentials, profile and endpoint are those that boto3 would use (`AWS_ENDPOINT_URL_SQS`, ...);
    the region is the one in the queue's address. A queue whose address is not Amazon's is looked
    for at that address, unless an endpoint is configured.

    Every verb raises `QueueUnavailable` when the queue does not answer, and `Unsupported` when it
    does not exist or we may not use it.
    """

    def __init__(self, url: str, *, patience: float = 30.0, rng: random.Random | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
            raise Unsupported(
                f"{shown(url) if parts.hostname else 'what is given'} is no queue: give an SQS queue's URL, such as "
                "https://sqs.eu-west-1.amazonaws.com/123456789012/dreamdrop"
            )
        if parts.path.endswith(".fifo"):
            raise Unsupported(
                f"{shown(url)} is a FIFO queue: S3 sends to none, and one request would hold up the others; "
                "make a standard queue"
            )
        self.url = shown(url)  # no password that stands in it is ever sent or told
        self._patience = patience  # seconds that a call is tried before it gives up
        self._rng = rng or random.Random()
        self._client = LazyClient(self._made)
        self._limit = 0  # bytes of a message; 0: not asked yet

    async def open(self) -> None:
        """Connect, and find out early whether the queue is there for us."""
        try:
            await self._attributes("QueueArn")
        except Unsupported as error:
            if not _is_denied(error):  # a worker may be allowed to receive and not to look
                await self.close()
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
            most: 1 to 10 of them.
            wait: whole seconds, 0 to 20, until an empty answer; longer when the queue has to be
                asked again.
            visibility: whole seconds that others do not see them. More than `wait` + 10, or a
                message whose answer is lost is shown again too late to be renewed.
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
        """Keep messages invisible for `visibility` seconds from now; 0 gives them back at once.

        Returns:
            Those whose receipt is no longer good: shown again meanwhile, or deleted.

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
        """Delete messages; those that are not in the answer are gone, unless the queue forgets (it may).

        Returns:
            What could not be deleted, because its receipt is no longer good or the queue failed: it
            will be delivered again.
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
            Rejected: a body holds a character that SQS does not carry; nothing was sent.
            QueueUnavailable: it says how many were not sent.
        """
        limit = await self.max_bytes()
        sizes = [size_of(body, attributes) for body in bodies]
        for number, (body, size) in enumerate(zip(bodies, sizes, strict=True)):
            if size > limit:
                raise TooLarge(f"message {number + 1} of {len(bodies)}", size, limit)
            if not is_sendable(body):
                raise Rejected(
                    "invalid_json",
                    f"message {number + 1} of {len(bodies)} holds a control character that a queue does not "
                    "carry: write it as \\u....",
                )
        typed = {k: {"DataType": "String", "StringValue": v} for k, v in (attributes or {}).items()}
        ids: list[str] = [""] * len(bodies)
        wrong: list[QueueUnavailable | Unsupported] = []

        async def call(numbers: list[int]) -> None:
            if wrong:
                return
            entries = [{"MessageBody": bodies[n], "MessageAttributes": typed} for n in numbers]
            sent: dict[int, str] = {}
            try:
                failed = await self._batch("send_message_batch", "send to", entries, sent)
            except (QueueUnavailable, Unsupported) as error:
                wrong.append(error)
            else:
                if failed:
                    codes = ", ".join(sorted({failure.code for failure in failed.values()}))
                    wrong.append(QueueUnavailable(f"{self.url} does not take every message: {codes}"))
            for place, id in sent.items():
                ids[numbers[place]] = id

        await gather_bounded(fitting(sizes, limit), AT_ONCE, call)
        if wrong:
            raise type(wrong[0])(f"{wrong[0]} ({ids.count('')} of {len(ids)} not sent)") from wrong[0]
        return ids

    async def max_bytes(self) -> int:
        """The largest message that the queue takes, its attributes included; asked for once."""
        if not self._limit:
            try:
                found = await self._attributes("MaximumMessageSize")
            except Unsupported as error:
                if not _is_denied(error):
                    raise
                found = {}  # a producer may be allowed to send and not to look
            self._limit = min(int(found.get("MaximumMessageSize", MAX_BYTES)), MAX_BYTES)
        return self._limit

    async def facts(self) -> QueueFacts:
        """How the queue is set up, and about how full it is."""
        return facts_of(await self._attributes("All"))

    async def url_of(self, arn: str) -> str:
        """The URL of another queue in the same place, such as the one for dead letters."""
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
        self, verb: str, what: str, entries: Sequence[Mapping[str, Any]], told: dict[int, str] | None = None
    ) -> dict[int, Failed]:
        """Send up to ten entries, and those that the queue could not serve again, a few times.

        Returns:
            What failed, by the place of its entry.
        """
        left = list(range(len(entries)))
        refused: dict[int, Failed] = {}
        for last in [False] * (TRIES - 1) + [True]:
            numbered = [{"Id": str(place), **entries[place]} for place in left]
            answer = await self._call(verb, what, ANSWER, Entries=numbered)
            if told is not None:
                told |= {int(entry["Id"]): entry["MessageId"] for entry in answer.get("Successful", ())}
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
        """Call, and call again while that may help. `of`: whether the call names this queue."""
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

    def _made(self) -> Any:
        session = new_session()
        region, endpoint = queue_endpoint(self.url, session)
        config = config_for(session, tries=1, read_timeout=LONG_POLL + ANSWER)  # `_call` tries again
        return session.create_client("sqs", region_name=region, endpoint_url=endpoint, config=config)


def _is_denied(error: Unsupported) -> bool:
    return isinstance(error.__cause__, Exception) and is_denied(error.__cause__)
