"""The targets of announcements, by the words of the setting: a queue, a topic, a webhook.

    https://sqs.eu-west-1.amazonaws.com/123456789012/done    an SQS queue
    sqs+http://localhost:9324/000000000000/done              a queue of another server
    arn:aws:sns:eu-west-1:123456789012:done                  an SNS topic
    https://hooks.example.com/done                           a webhook

A queue or a topic gets the event as its message, and the event's type, status and task as message
attributes, so that subscriptions can filter without reading it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from consumer.addresses import Hosts
from consumer.outbox import Undelivered
from consumer.webhook import Secrets, Webhook
from infra.s3_config import CONNECT_TIMEOUT, new_session, region_of
from infra.s3_errors import code_of, status_of
from schemas.errors import Unsupported

if TYPE_CHECKING:
    from consumer.outbox import Target
    from schemas.completion import Completion

_READ_TIMEOUT = 8.0  # seconds of silence; the whole try has ten
_FOREIGN = (ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError)
_AWS_QUEUE = re.compile(
    r"https://(?P<host>(?:[a-z0-9-]+\.)*(?:sqs(?:-fips)?\.(?P<region>[a-z0-9-]+)|(?P<old>[a-z0-9-]+)\.queue)"
    r"\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws))/\d{12}/[A-Za-z0-9_-]{1,80}(?:\.fifo)?"
)
_LIKE_A_QUEUE = re.compile(r"/\d{12}/[A-Za-z0-9_-]+(?:\.fifo)?$")
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:(?P<region>[a-z0-9-]+):\d{12}:[A-Za-z0-9_-]{1,256}(?:\.fifo)?")


def targets(words: Sequence[str], *, secrets: str, hosts: str, now: Callable[[], float]) -> list[Target]:
    """Every target that the setting names, each once. Nothing is connected to yet.

    Args:
        words: of the setting; one may hold several, separated by blanks.
        secrets, hosts: the webhooks' secrets and their allow-list, as in the environment.
        now: seconds since 1970.

    Raises:
        Unsupported: a word that is none of the four; the message does not repeat what may be secret.
    """
    keys, allowed = Secrets(secrets), Hosts(hosts)
    named = dict.fromkeys(word for text in words for word in text.split())
    return [_target(word, keys, allowed, now) for word in named]


def _target(word: str, secrets: Secrets, hosts: Hosts, now: Callable[[], float]) -> Target:
    if topic := _TOPIC.fullmatch(word):
        return MessageTarget("sns", word, region=topic["region"])
    if queue := _AWS_QUEUE.fullmatch(word):
        host, region = queue["host"], queue["region"] or queue["old"]
        usual = queue["old"] or host.startswith(f"sqs.{region}.amazonaws.")  # the SDK's own choice then
        return MessageTarget("sqs", word, region=region, endpoint="" if usual else f"https://{host}")
    if word.startswith(("sqs+http://", "sqs+https://")):
        url = word.removeprefix("sqs+")
        parts = urlsplit(url)
        if not parts.hostname or not parts.path.strip("/") or parts.username or parts.query:
            raise Unsupported("a queue to announce to is written sqs+http://host:port/account/name")
        return MessageTarget("sqs", url, endpoint=f"{parts.scheme}://{parts.netloc}")
    if word.startswith("arn:"):
        raise Unsupported(
            f"{word[:100]!r} is not the ARN of an SNS topic; a queue is named by its URL, not its ARN"
        )
    if word.startswith(("https://", "http://")):
        try:
            return Webhook(word, secrets, hosts, now=now)
        except Unsupported as error:
            if _LIKE_A_QUEUE.search(word):
                raise Unsupported(
                    f"{error} (if it is a queue of a server other than AWS, write sqs+ before it)"
                ) from None
            raise
    raise Unsupported(
        f"{word.partition(':')[0][:20]!r}... is nothing to announce to: give an SQS queue's URL, "
        "an SNS topic's ARN, or an https:// webhook"
    )


class MessageTarget:
    """One queue or topic; belongs to the event loop that first uses it."""

    def __init__(
        self, service: Literal["sqs", "sns"], address: str, *, region: str = "", endpoint: str = ""
    ) -> None:
        self.name = f"{service} {address.rpartition('/')[2]}"
        self._service = service
        self._address = address
        self._region = region
        self._endpoint = endpoint
        self._exits = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._client: Any = None

    async def deliver(self, event: Completion) -> None:
        """Send it once. Raises `Undelivered`."""
        facts = {"type": event.type, "status": event.data.status, "task": event.data.task or "none"}
        fields: dict[str, Any] = {
            "MessageAttributes": {k: {"DataType": "String", "StringValue": v} for k, v in facts.items()}
        }
        if self._address.endswith(".fifo"):  # no order is promised, but repeats can be told
            fields |= {"MessageGroupId": event.id, "MessageDeduplicationId": event.id}
        text = event.to_json().decode()
        try:
            client = await self._opened()
            if self._service == "sqs":
                await client.send_message(QueueUrl=self._address, MessageBody=text, **fields)
            else:
                await client.publish(TopicArn=self._address, Message=text, **fields)
        except _FOREIGN as error:
            reason = f"{status_of(error)} {code_of(error)}" if status_of(error) else type(error).__name__
            raise Undelivered(f"{self._service} answered {reason}") from error

    async def close(self) -> None:
        self._client = None
        await self._exits.aclose()

    async def _opened(self) -> Any:
        async with self._lock:
            if self._client is None:
                session = new_session()
                config = AioConfig(
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=_READ_TIMEOUT,
                    retries={"mode": "standard", "total_max_attempts": 1},  # the outbox tries again
                    max_pool_connections=16,
                    tcp_keepalive=True,
                )
                self._client = await self._exits.enter_async_context(
                    session.create_client(
                        self._service,
                        region_name=self._region or region_of(session),
                        endpoint_url=self._endpoint or None,
                        config=config,
                    )
                )
            return self._client
