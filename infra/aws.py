"""Access to AWS services and servers like them: client settings, addresses, and what an error means."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions as boto
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.parsers import ResponseParserError

from infra.credentials import Access, follow

DEFAULT_REGION = "us-east-1"  # for servers without regions; AWS redirects to a bucket's own region
CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte
POOL = 64  # connections
#: What the AWS library raises when a call fails.
FOREIGN = (boto.ClientError, boto.BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError)
CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
HOW_TO_SIGN_IN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a machine with a role"
)
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_AMAZON_QUEUE = re.compile(
    r"(?:sqs(?:-fips)?\.([a-z0-9-]+)|([a-z0-9-]+)\.queue|queue)\.amazonaws\.com(?:\.cn)?|sqs\.([a-z0-9-]+)\.api\.aws"
)
_NAMED_REGION = re.compile(r"(?:^|\.)sqs\.([a-z]{2}(?:-[a-z]+)+-\d)\.")  # a VPC endpoint's, or LocalStack's


class LazyClient:
    """A client that is made when it is first needed. For one event loop.

    Args:
        make: makes the client's context manager, as `AioSession.create_client` does.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._exits = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._client: Any = None

    async def __call__(self) -> Any:
        """The client. Raises one of `FOREIGN` when it cannot be made; the next call tries again."""
        async with self._lock:  # of two clients made at once, one would never be closed
            if self._client is None:
                self._client = await self._exits.enter_async_context(self._make())
            return self._client

    @property
    def endpoint(self) -> str:
        """Where its requests go; "" while there is no client."""
        return "" if self._client is None else str(self._client.meta.endpoint_url)

    async def close(self) -> None:
        self._client = None  # first, so that a late call makes a new client and does not use a closed one
        await self._exits.aclose()


def new_session(access: Access | None = None) -> AioSession:
    """A session with the current environment, whose credentials may change; see `infra.credentials`.

    Args:
        access: is told what its calls are answered.
    """
    session = _session()
    follow(session, access or Access(), lambda: _session().get_credentials())
    return session


def _session() -> AioSession:
    """A session as the SDK makes it; its large tables are read once per process."""
    session = AioSession()
    session.register_component("data_loader", _tables(session.get_config_variable("data_path")))
    if region := os.environ.get("AWS_REGION"):  # every other SDK reads it, and botocore does not
        session.set_config_variable("region", region)
    return session


@cache
def _tables(data_path: str | None) -> Loader:
    return create_loader(data_path)


async def credentials() -> str | None:
    """Where the SDK finds credentials, such as "env" or "iam-role"; None when it finds none."""
    try:
        credentials = await _session().get_credentials()
    except BotoCoreError:
        return None
    return str(credentials.method) if credentials is not None else None


def region_of(session: AioSession) -> str:
    return str(session.get_config_variable("region") or DEFAULT_REGION)


def region_source(session: AioSession) -> str:
    """What set the region of `region_of`: a variable, a profile, or nothing."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(name):
            return name
    if session.get_config_variable("region"):
        return f"the profile {session.profile or 'default'}"
    return "the default, because neither AWS_REGION nor a profile sets one"


def is_on_aws(session: AioSession) -> bool:
    """Whether S3's endpoint is Amazon's."""
    endpoint = endpoint_of(session, "s3")
    return endpoint is None or is_aws(endpoint)


def endpoint_of(session: AioSession, service: str) -> str | None:
    """The endpoint that is configured for a service, by the SDK's rules; None for Amazon's."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    endpoint = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name=service
    ).provide()
    return None if endpoint is None else str(endpoint)


def queue_endpoint(url: str, session: AioSession) -> tuple[str, str | None]:
    """(region, endpoint) for a queue's URL; the endpoint is None where the SDK finds it by itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    amazon = _AMAZON_QUEUE.fullmatch(host)
    region = next((part for part in amazon.groups() if part), "us-east-1") if amazon else region_of(session)
    if amazon or endpoint_of(session, "sqs"):
        return region, None
    named = _NAMED_REGION.search(host)
    return named[1] if named else region, shown(f"{parts.scheme}://{parts.netloc}")


def config_for(session: AioSession, *, tries: int, read_timeout: float = READ_TIMEOUT) -> AioConfig:
    """Settings of one client, which sends a request at most `tries` times.

    Off AWS: path-style addresses and the older checksums only, unless the user's environment or
    profile says otherwise.
    """
    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": read_timeout,
        "max_pool_connections": POOL,
        "retries": {"mode": "standard", "total_max_attempts": tries},
        "tcp_keepalive": True,
    }
    if not is_on_aws(session):
        profile = session.get_scoped_config()
        settings["s3"] = {"addressing_style": "path", **(profile.get("s3") or {})}
        for name in _CHECKSUMS:
            if not os.environ.get(f"AWS_{name.upper()}") and name not in profile:
                settings[name] = "when_required"
    return AioConfig(**settings)


def code_of(error: Exception) -> str:
    """The service's error code, such as "NoSuchKey"; "" when it gave none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def status_of(error: Exception) -> int:
    """The HTTP status of a service's answer; 0 when there was no answer."""
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_aws(endpoint: str) -> bool:
    """Whether an endpoint is Amazon's."""
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def shown(url: str) -> str:
    """A URL without the password or the signature that may be in it: fit for messages and logs."""
    parts = urlsplit(url)
    if not parts.hostname:
        return "the endpoint"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def reason_of(error: Exception, endpoint: str, variable: str) -> str:
    """Why a call got no answer, and what to do about it.

    Args:
        endpoint: where the call went, as `shown`.
        variable: the environment variable that sets the endpoint.
    """
    if isinstance(error, CREDENTIALS):
        return f"no usable AWS credentials: {HOW_TO_SIGN_IN}"
    if isinstance(error, boto.ProfileNotFound):
        return "AWS_PROFILE names a profile that is not in ~/.aws/config: correct it or unset it"
    if isinstance(error, (boto.ConnectTimeoutError, boto.EndpointConnectionError)):
        return f"{endpoint} cannot be reached: check {variable} and the network"
    if isinstance(error, boto.SSLError):
        return f"the certificate of {endpoint} is not trusted: set AWS_CA_BUNDLE to its authority"
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, boto.HTTPClientError):
        return f"the AWS library refused ({type(error).__name__}): check the AWS variables and ~/.aws/config"
    return f"the connection to {endpoint} broke or timed out; the call will be tried again later"
