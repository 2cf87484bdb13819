"""Webhooks: events sent to a web server of the operator's choice, signed as Standard Webhooks specifies.

The receiver checks the signature with the shared secret, and so knows that the event is genuine and
fresh. The setting alone does not decide where a webhook may lead; an allow-list does, too: a worker runs
inside a network, and an address that somebody slipped into its settings must not reach what
only that network can reach. So every address is checked at the moment of connecting to it.

Source: the Standard Webhooks specification, 1.0 (symmetric signatures, `v1`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from consumer.announce.allow_list import Hosts, Refused
from consumer.announce.outbox import Gone, Undelivered
from schemas.completion import CONTENT_TYPE
from schemas.errors import Unsupported

if TYPE_CHECKING:
    from schemas.completion import Completion

TIMEOUT = 10.0  # seconds for one delivery, the look-up of the name included
_CONNECT = 3.0  # seconds
_SECRET_BYTES = (24, 64)  # what the specification allows
_HOW = "write whsec_ and the base64 of 24 to 64 random bytes, as in `echo whsec_$(openssl rand -base64 32)`"


class Secrets:
    """The signing keys: several while one is being replaced. Their values are never shown."""

    def __init__(self, text: str) -> None:
        """Read `whsec_...` secrets, separated by spaces. Raises `Unsupported`."""
        self._keys = [_key(secret) for secret in text.split()]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"<{len(self._keys)} secrets>"

    def signature(self, id: str, timestamp: int, body: bytes) -> str:
        """The header `webhook-signature`: one `v1,<base64>` for each secret."""
        content = f"{id}.{timestamp}.".encode() + body
        digests = (hmac.digest(key, content, hashlib.sha256) for key in self._keys)
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not (secret.startswith("whsec_") and _SECRET_BYTES[0] <= len(key) <= _SECRET_BYTES[1]):
        raise Unsupported(f"DREAMDROP_WEBHOOK_SECRET holds a text that is not a valid secret: {_HOW}")
    return key


class Webhook:
    """One URL that events are POSTed to; belongs to the event loop that first uses it."""

    def __init__(self, url: str, secrets: Secrets, hosts: Hosts, *, now: Callable[[], float]) -> None:
        """
        Args:
            now: seconds since 1970, for the signature.

        Raises:
            Unsupported: the URL may not be used, or there is no secret.
        """
        self._url = hosts.checked(url)
        if not secrets:
            raise Unsupported(f"webhooks are signed: set DREAMDROP_WEBHOOK_SECRET; {_HOW}")
        # a path may be a password, and two webhooks may share a host
        mark = hashlib.sha256(url.encode()).hexdigest()[:6]
        self.name = f"{self._url.origin()} ({mark})"
        self._secrets = secrets
        self._hosts = hosts
        self._now = now
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, event: Completion) -> None:
        """POST it once. Raises `Undelivered`, `Gone`."""
        body, timestamp = event.to_json(), int(self._now())
        headers = {
            "Content-Type": CONTENT_TYPE,
            "User-Agent": "dreamdrop",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self._secrets.signature(event.id, timestamp, body),
        }
        try:
            answer = await self._opened().post(self._url, data=body, headers=headers, allow_redirects=False)
            answer.close()  # its body is not read: it is not trusted, and may have any length
        except Refused as error:
            raise Undelivered(str(error)) from error
        except TimeoutError as error:
            raise Undelivered("no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, Refused) else None
            raise Undelivered(str(cause) if cause else f"no connection: {type(error).__name__}") from error
        self._check(answer.status, answer.headers.get("Retry-After", ""))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _check(self, status: int, retry_after: str) -> None:
        if 200 <= status < 300:
            return
        if status == 410:
            raise Gone("it answered 410 Gone")
        if 300 <= status < 400:
            raise Undelivered(f"it answered {status}; redirects are not followed: set the final address")
        raise Undelivered(f"it answered {status}", retry_after=seconds_until(retry_after, self._now()))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_CheckedNames(self._hosts, self._url), use_dns_cache=False, limit=16
                ),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=_CONNECT),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # a proxy would connect to addresses that were not checked
                auto_decompress=False,
            )
        return self._session


class _CheckedNames(AbstractResolver):
    """Resolves the webhook's host name, and accepts it only if the allow-list allows every address.

    It uses a thread of its own, one at a time: a name server that hangs must not use up the threads
    in which the worker encodes pictures.
    """

    def __init__(self, hosts: Hosts, url: URL) -> None:
        self._hosts = hosts
        self._url = url
        self._lookup: asyncio.Future[list[Any]] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if self._lookup is None or self._lookup.done():
            loop = asyncio.get_running_loop()
            self._lookup = loop.create_future()
            Thread(target=_resolve, args=(loop, self._lookup, host, port, family), daemon=True).start()
        infos = await asyncio.shield(self._lookup)  # a caller that gives up does not end it for the next one
        for *_, address in infos:
            self._hosts.check_address(self._url, address[0])
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=proto, flags=flags)
            for kind, _, proto, _, address in infos
        ]

    async def close(self) -> None: ...


def _resolve(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[Any]], host: str, port: int, family: int
) -> None:
    """In a thread: one look-up, whose result goes to the event loop if that still runs."""

    def report(infos: list[Any], error: OSError | None) -> None:
        if error is not None:
            answer.set_exception(error)
            answer.exception()  # marked as retrieved, even if nobody waits any more
        else:
            answer.set_result(infos)

    infos: list[Any] = []
    failure: OSError | None = None
    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        failure = error
    except UnicodeError:
        failure = OSError("the name cannot be looked up")
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(report, infos, failure)


def seconds_until(retry_after: str, now: float) -> float:
    """The seconds that `Retry-After` asks for, given as seconds or a date; 0 when it cannot be read."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(now, UTC)).total_seconds())
