"""The targets of announcements that a setting may name: a queue, a topic, a webhook.

    https://sqs.eu-west-1.amazonaws.com/123456789012/done    an SQS queue
    sqs+http://localhost:9324/000000000000/done              a queue of another server
    arn:aws:sns:eu-west-1:123456789012:done                  an SNS topic
    https://hooks.example.com/done                           a webhook

A queue or a topic gets the event as its message, and the event's type, status and task as message
attributes, so that subscriptions can filter without reading it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from consumer.announce.allow_list import Hosts
from consumer.announce.outbox import Undelivered
from consumer.announce.webhook import Secrets, Webhook
from infra.aws import FOREIGN, LazyClient, code_of, config_for, new_session, status_of
from infra.queues.sqs import Queue
from schemas.errors import DreamError, Unsupported

if TYPE_CHECKING:
    from consumer.announce.outbox import Target
    from schemas.completion import Completion

_AWS_QUEUE = re.compile(
    r"https://(?:[a-z0-9-]+\.)*(?:sqs(?:-fips)?\.[a-z0-9-]+|[a-z0-9-]+\.queue|queue)"
    r"\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)/\d{12}/[A-Za-z0-9_-]{1,80}(?:\.fifo)?"
)
_LIKE_A_QUEUE = re.compile(r"/\d{12}/[A-Za-z0-9_-]+(?:\.fifo)?$")
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:(?P<region>[a-z0-9-]+):\d{12}:[A-Za-z0-9_-]{1,256}(?:\.fifo)?")


def targets(settings: Sequence[str], *, secrets: str, hosts: str, now: Callable[[], float]) -> list[Target]:
    """Every target that the settings name, each once. Nothing is connected to yet.

    Args:
        settings: addresses; one text may hold several, separated by blanks.
        secrets, hosts: the webhooks' secrets and their allow-list, as in the environment.
        now: seconds since 1970.

    Raises:
        Unsupported: an address is none of the four; the message does not repeat what may be secret.
    """
    keys, allowed = Secrets(secrets), Hosts(hosts)
    addresses = dict.fromkeys(address for text in settings for address in text.split())
    return [_target(address, keys, allowed, now) for address in addresses]


def _target(address: str, secrets: Secrets, hosts: Hosts, now: Callable[[], float]) -> Target:
    if topic := _TOPIC.fullmatch(address):
        return TopicTarget(address, topic["region"])
    if _AWS_QUEUE.fullmatch(address):
        return QueueTarget(address)
    if address.startswith(("sqs+http://", "sqs+https://")):
        url = address.removeprefix("sqs+")
        parts = urlsplit(url)
        if not parts.hostname or not parts.path.strip("/") or parts.username or parts.query:
            raise Unsupported("write a queue for announcements as sqs+http://host:port/account/name")
        return QueueTarget(url)
    if address.startswith("arn:"):
        raise Unsupported(
            f"{address[:100]!r} is not the ARN of an SNS topic; a queue is named by its URL, not its ARN"
        )
    if address.startswith(("https://", "http://")):
        try:
            return Webhook(address, secrets, hosts, now=now)
        except Unsupported as error:
            if _LIKE_A_QUEUE.search(address):
                raise Unsupported(
                    f"{error} (if it is a queue of a server other than AWS, write sqs+ before it)"
                ) from None
            raise
    raise Unsupported(
        f"{address.partition(':')[0][:20]!r}... is not an address for announcements: give an SQS queue's URL, "
        "an SNS topic's ARN, or an https:// webhook"
    )


class QueueTarget:
    """An SQS queue."""

    def __init__(self, url: str) -> None:
        if url.endswith(".fifo"):
            raise Unsupported(
                f"the queue {url.rpartition('/')[2]} is a FIFO queue, and announcements have no order; "
                "use a standard queue"
            )
        self.name = f"sqs {url.rpartition('/')[2]}"
        self._queue = Queue(url, patience=0.0)  # no retries here: the outbox does them

    async def deliver(self, event: Completion) -> None:
        """Send it once. Raises `Undelivered`."""
        try:
            await self._queue.send([event.to_json().decode()], attributes=_facts(event))
        except DreamError as error:  # its text may be logged
            raise Undelivered(str(error)) from error

    async def close(self) -> None:
        await self._queue.close()


class TopicTarget:
    """An SNS topic; belongs to the event loop that first uses it."""

    def __init__(self, arn: str, region: str) -> None:
        self.name = f"sns {arn.rpartition(':')[2]}"
        self._arn = arn
        self._region = region
        self._client = LazyClient(self._made)

    async def deliver(self, event: Completion) -> None:
        """Publish it once. Raises `Undelivered`."""
        fields: dict[str, Any] = {
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in _facts(event).items()
            }
        }
        if self._arn.endswith(".fifo"):  # no order is promised; the id lets the topic discard repeats
            fields |= {"MessageGroupId": event.id, "MessageDeduplicationId": event.id}
        try:
            client = await self._client()
            await client.publish(TopicArn=self._arn, Message=event.to_json().decode(), **fields)
        except FOREIGN as error:
            status = status_of(error)
            reason = f"answered {status} {code_of(error)}" if status else f"failed: {type(error).__name__}"
            raise Undelivered(f"{self.name} {reason}") from error

    async def close(self) -> None:
        await self._client.close()

    def _made(self) -> Any:
        session = new_session()
        config = config_for(session, tries=1)  # the outbox tries again
        return session.create_client("sns", region_name=self._region, config=config)


def _facts(event: Completion) -> dict[str, str]:
    """The attributes that a subscription can filter by."""
    return {"type": event.type, "status": event.data.status, "task": event.data.task or "none"}
