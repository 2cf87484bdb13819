"""Watches for the notice that a spot instance will be interrupted, so that the worker can drain.

The notice comes two minutes before, in the instance's metadata (EC2 User Guide, "Spot Instance
interruption notices"): `spot/instance-action` answers 404 until then. Read over IMDSv2, with a session token.
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

_EVERY = 5.0  # seconds between two requests, as Amazon advises
_TIMEOUT = 2.0  # seconds; the address is link-local
_TOKEN_TTL = 21_600  # seconds
_ENDPOINT = "http://169.254.169.254"
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


async def watch(stop: asyncio.Event, *, every: float = _EVERY) -> None:
    """Set `stop` when the notice comes; returns once `stop` is set, by anyone."""
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT
    while not stop.is_set():
        try:
            notice = await asyncio.to_thread(_notice, endpoint.rstrip("/"))
        except (OSError, ValueError, http.client.HTTPException) as error:  # not on EC2, or throttled
            log.debug("no instance metadata", extra={"why": str(error)})
            notice = None
        if notice:
            log.warning("this spot instance will be interrupted: draining", extra=notice)
            stop.set()
            return
        await asyncio.sleep(every)


def _notice(endpoint: str) -> dict[str, str] | None:
    """What will happen and when; None without a notice. Raises `OSError`, `ValueError`, `HTTPException`."""
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL)}
    request = urllib.request.Request(f"{endpoint}/latest/api/token", method="PUT", headers=headers)
    with _send(request) as response:
        token = response.read(4096).decode("ascii")
    request = urllib.request.Request(
        f"{endpoint}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with _send(request) as response:
            notice = json.loads(response.read(4096))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    if not isinstance(notice, dict):
        raise ValueError("the notice is not a JSON object: this is not EC2")
    return {"action": str(notice.get("action", "")), "time": str(notice.get("time", ""))}


def _send(request: urllib.request.Request) -> HTTPResponse:
    response: HTTPResponse = _direct.open(request, timeout=_TIMEOUT)
    return response
