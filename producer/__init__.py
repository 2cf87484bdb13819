"""Everything that a client touches: `from producer import AsyncClient, Client`.

    with Client("./dreamdrop-data") as dream:
        ticket = dream.submit({"prompt": "a red circle on a blue background"})
        picture = dream.images(ticket)[0]

The names are loaded when they are first used: the command line imports this package, too, and
its help needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.errors import Conflict, NothingToRetry, StillWorking, UnknownRequest
    from producer.request_state import State
    from producer.requests import Ticket
    from producer.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Conflict",
    "NothingToRetry",
    "State",
    "StillWorking",
    "Ticket",
    "UnknownRequest",
]

_HOME = {
    "AsyncClient": "client",
    "Client": "sync",
    "Conflict": "errors",
    "NothingToRetry": "errors",
    "State": "lookup",
    "StillWorking": "errors",
    "Ticket": "requests",
    "UnknownRequest": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
