"""The client: submits requests to a store, waits for them, and shows people what came of them.

Programs use `AsyncClient` and `Client`, people the command line (`producer.cli`), and other programs call
the HTTP facade (`producer.web`). It may import `infra` and `schemas`, but never `consumer` or torch.

    with Client("./dreamdrop-data") as dream:
        ticket = dream.submit({"prompt": "a red circle on a blue background"})
        picture = dream.images(ticket)[0]

The names are loaded on first use, because the command line imports this package, too, and its help must
stay fast.
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

_MODULES = {
    "AsyncClient": "client",
    "Client": "sync",
    "Conflict": "errors",
    "NothingToRetry": "errors",
    "State": "request_state",
    "StillWorking": "errors",
    "Ticket": "requests",
    "UnknownRequest": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
