"""The client's span: how long it took to drop or send a request."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from infra import traces

if TYPE_CHECKING:
    from producer.requests import Parcel, Ticket


async def traced(parcel: Parcel, drop: Callable[[Parcel], Awaitable[Ticket]]) -> Ticket:
    """Drop a request, and send a span of it."""
    began = time.monotonic()
    ticket = await drop(parcel)
    submitted(parcel, time.monotonic() - began)
    return ticket


def submitted(parcel: Parcel, seconds: float) -> None:
    """Send the span of a request that was dropped or sent."""
    ticket = parcel.ticket
    traces.record("submit", ticket.id, ticket.fingerprint, lambda: parcel.body, seconds=seconds, top=True)
