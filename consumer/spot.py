"""A spot machine is told two minutes before it is taken away; then the worker drains.

The notice appears in the instance's metadata (EC2 User Guide, "Spot Instance interruption
notices"): `spot/instance-action` answers 404 until then. Asked over IMDSv2, with a session token.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.client import HTTPResponse

log = logging.getLogger(__name__)

_EVERY = 5.0  # seconds between two looks, as Amazon advises
_TIMEOUT = 2.0  # seconds; the address is on the machine itself
_TOKEN_LIVES = 21_600  # seconds
_ENDPOINT = "http://169.254.169.254"
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy


async def watch(stop: asyncio.Event, *, every: float = _EVERY) -> None:
    """Set `stop` when the machine is about to be taken away; returns then, or when somebody else did."""
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT
    while not stop.is_set():
        try:
            notice = await asyncio.to_thread(_notice, endpoint.rstrip("/"))
        except (OSError, ValueError, http.client.HTTPException) as error:  # not on EC2, or it is busy
            log.debug("no instance metadata", extra={"why": str(error)})
            notice = None
        if notice:
            log.warning("the machine will be taken away: draining", extra=notice)
            stop.set()
            return
        await asyncio.sleep(every)


def _notice(endpoint: str) -> dict[str, str] | None:
    """What is going to happen and when, or None. Raises `OSError`, `ValueError`, `HTTPException`."""
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIVES)}
    with _ask(
        urllib.request.Request(f"{endpoint}/latest/api/token", method="PUT", headers=headers)
    ) as answer:
        token = answer.read(4096).decode("ascii")
    request = urllib.request.Request(
        f"{endpoint}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with _ask(request) as answer:
            found = json.loads(answer.read(4096))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    if not isinstance(found, dict):
        raise ValueError("the notice is no JSON object: this is not EC2")
    return {"action": str(found.get("action", "")), "time": str(found.get("time", ""))}


def _ask(request: urllib.request.Request) -> HTTPResponse:
    answer: HTTPResponse = _direct.open(request, timeout=_TIMEOUT)
    return answer
