"""How to talk to a queue: the SDK's own settings, and what a queue's address tells besides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig

from infra.aws import CONNECT_TIMEOUT, POOL, endpoint_of, region_of

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

LONG_POLL = 20.0  # seconds that a receive may wait at most
ANSWER = 10.0  # seconds for an answer, beyond a long poll's own wait
_AMAZONS = re.compile(
    r"(?:sqs(?:-fips)?\.([a-z0-9-]+)|([a-z0-9-]+)\.queue|queue)\.amazonaws\.com(?:\.cn)?|sqs\.([a-z0-9-]+)\.api\.aws"
)
_NAMED = re.compile(r"(?:^|\.)sqs\.([a-z]{2}(?:-[a-z]+)+-\d)\.")  # of a VPC's endpoint, or LocalStack's


def config() -> AioConfig:
    """Settings of a client that tries once: `Queue` repeats by itself."""
    return AioConfig(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=LONG_POLL + ANSWER,
        max_pool_connections=POOL,
        retries={"mode": "standard", "total_max_attempts": 1},
        tcp_keepalive=True,
    )


def where(url: str, session: AioSession) -> tuple[str, str | None]:
    """(region, endpoint) for a queue's URL; the endpoint is None where the SDK knows it by itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    amazons = _AMAZONS.fullmatch(host)
    region = next((part for part in amazons.groups() if part), "us-east-1") if amazons else region_of(session)
    if amazons or endpoint_of(session, "sqs"):
        return region, None
    named = _NAMED.search(host)
    port = f":{parts.port}" if parts.port else ""
    return named[1] if named else region, f"{parts.scheme}://{_bracketed(host)}{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
