"""What an operator decides about the facade."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from producer.web.api_keys import Key
from schemas.limits import Limits
from schemas.manifest import DEFAULT_LIMITS

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class FacadeSettings:
    """Everything that `dreamdrop serve` can be told."""

    store: str
    queues: tuple[str, ...] = ()  # the first is the express lane
    keys: tuple[Key, ...] = ()  # none: everybody may do everything
    hosts: tuple[str, ...] = LOOPBACK_NAMES  # names that a browser may reach it by; "*" for any
    origins: tuple[str, ...] = ()  # other sites whose pages may call it (CORS)
    wait: float = 300.0  # seconds that a synchronous call lasts at most
    room: int = 1000  # requests that may wait in the express lane before callers are sent away
    limits: Limits = DEFAULT_LIMITS


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
