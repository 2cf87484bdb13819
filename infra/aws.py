"""How to talk to a bucket: the SDK's own settings, and what stores other than AWS need besides."""

from __future__ import annotations

import os
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

DEFAULT_REGION = "us-east-1"  # for servers that have none; AWS says itself where a bucket is
CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 20.0  # seconds of silence
POOL = 64  # connections
#: Whatever the AWS library raises when a call does not succeed.
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


def new_session() -> AioSession:
    """A session with the environment as it is now; the SDK's large tables are read once a process."""
    session = AioSession()
    session.register_component("data_loader", _tables(session.get_config_variable("data_path")))
    return session


@cache
def _tables(data_path: str | None) -> Loader:
    return create_loader(data_path)


async def credentials() -> str | None:
    """Where the SDK finds credentials, such as "env" or "iam-role"; None when it finds none."""
    try:
        found = await new_session().get_credentials()
    except BotoCoreError:
        return None
    return str(found.method) if found is not None else None


def region_of(session: AioSession) -> str:
    return str(session.get_config_variable("region") or DEFAULT_REGION)


def is_on_aws(session: AioSession) -> bool:
    """Whether no endpoint for S3 but Amazon's is configured."""
    endpoint = endpoint_of(session, "s3")
    return endpoint is None or is_aws(endpoint)


def endpoint_of(session: AioSession, service: str) -> str | None:
    """The endpoint that is configured for a service, by the SDK's own rules; None for Amazon's."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    found = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name=service
    ).provide()
    return None if found is None else str(found)


def config_for(session: AioSession, *, tries: int, read_timeout: float) -> AioConfig:
    """Settings of one client, which sends a request at most `tries` times.

    Off AWS: path-style addresses, and the older checksums only, unless the user's environment or
    profile says otherwise.
    """
    wishes: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": read_timeout,
        "max_pool_connections": POOL,
        "retries": {"mode": "standard", "total_max_attempts": tries},
        "tcp_keepalive": True,
    }
    if not is_on_aws(session):
        profile = session.get_scoped_config()
        wishes["s3"] = {"addressing_style": "path", **(profile.get("s3") or {})}
        for name in _CHECKSUMS:
            if not os.environ.get(f"AWS_{name.upper()}") and name not in profile:
                wishes[name] = "when_required"
    return AioConfig(**wishes)


def code_of(error: Exception) -> str:
    """The store's own word for an error, such as "NoSuchKey"; "" when it gave none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def status_of(error: Exception) -> int:
    """The HTTP status of a store's answer; 0 when there was no answer."""
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_aws(endpoint: str) -> bool:
    """Whether an endpoint is Amazon's own."""
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))
