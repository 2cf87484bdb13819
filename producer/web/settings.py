"""The facade's settings."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from producer.web.api_keys import Key
from schemas.limits import Limits
from schemas.manifest import DEFAULT_LIMITS

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class FacadeSettings:
    """What the options and variables of `dreamdrop serve` set."""

    store: str
    queues: tuple[str, ...] = ()  # requests go to the first, batches to the last
    keys: tuple[Key, ...] = ()  # none: every caller may do everything
    event_tokens: tuple[Key, ...] = ()  # object stores that may POST /events; none: nobody may
    hosts: tuple[str, ...] = LOOPBACK_NAMES  # host names that it answers to; "*" for any
    origins: tuple[str, ...] = ()  # other sites whose pages may call it (CORS)
    wait: float = 300.0  # the most seconds that a synchronous call lasts
    room: int = 1000  # requests that may wait in the express lane before callers get 429
    limits: Limits = DEFAULT_LIMITS


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
