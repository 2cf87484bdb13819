"""The worker's spans: claim, render and store of each image, commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra import traces

if TYPE_CHECKING:
    from infra.claims.claims import Held


def record(
    name: str,
    held: Held,
    *,
    seconds: float,
    ago: float = 0.0,
    error: str = "",
    facts: traces.Facts,
) -> None:
    """Send a span of a claim; see `infra.traces.record`."""
    claim = held.claim
    traces.record(
        name,
        claim.id,
        claim.fingerprint,
        claim.frozen.body,
        seconds=seconds,
        ago=ago,
        error=error,
        facts={"worker": claim.session, "attempt": claim.attempt, **facts},
    )
