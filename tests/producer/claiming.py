"""A request that a worker has claimed."""

from __future__ import annotations

from typing import Any

from infra.claims.claim import Claim
from producer import AsyncClient
from schemas.layout import claim_key, fingerprint
from schemas.result import Frozen


async def claim(client: AsyncClient, id: str, body: bytes, **fields: Any) -> None:
    """Create the first claim on an id."""
    held = Claim(
        id=id,
        fingerprint=fingerprint(body),
        frozen=Frozen.of(body),
        plan=None,
        session="w",
        nonce="n",
        epoch=1,
        attempt=1,
        **fields,
    )
    assert await client.store.create(claim_key(id, 1), held.body())
