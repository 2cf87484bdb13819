"""Canceling a request is winning the race for its result: whoever creates it first decides how it ended."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from producer import lookup
from producer.errors import UnknownRequest
from schemas.errors import NotFound
from schemas.layout import CLAIMS, REQUESTS, fingerprint, is_batch, parse_claim, request_id, result_key
from schemas.result import Failure, Frozen, Result

if TYPE_CHECKING:
    from infra.store import Info, Store


async def cancel(store: Store, id: str, *, keep: int) -> lookup.State:
    """Cancel a request; of a batch, also the rows that are not over. Returns how it ended.

    Args:
        keep: bytes of the request that its result repeats.
    """
    state = await lookup.state(store, id)
    if state.over:
        return state
    source = await lookup.find_request(store, id)
    claim = await lookup.read_claim(store, id)
    body = claim.frozen if claim is not None else await _frozen(store, source, keep)
    won = await store.create(result_key(id), _canceled(id, body), content_type="application/json")
    if source is not None:
        await store.delete(source.key, etag=source.etag)
    if won and ((source is not None and is_batch(source.key)) or (claim is not None and claim.batch)):
        await _cancel_rows(store, id, keep)
    return await lookup.state(store, id)


async def _frozen(store: Store, source: Info | None, keep: int) -> Frozen:
    """The request's bytes; nothing of one that nobody can read: a row that is not dropped yet."""
    if source is not None:
        with contextlib.suppress(NotFound):
            return Frozen.of((await store.get(source.key)).body, keep=keep)
    return Frozen(text="", cut=True)


async def _cancel_rows(store: Store, batch: str, keep: int) -> None:
    rows: set[str] = set()
    async for info in store.list(f"{REQUESTS}{batch}/"):
        rows.add(request_id(info.key))
    async for info in store.list(f"{CLAIMS}{batch}/"):
        found = parse_claim(info.key)
        if found:
            rows.add(found[0])
    rows.discard(batch)
    for row in sorted(rows):
        try:
            await cancel(store, row, keep=keep)
        except UnknownRequest:
            continue  # it went while we looked


def _canceled(id: str, frozen: Frozen) -> bytes:
    body = frozen.body()
    return Result(
        id=id,
        status="canceled",
        failure=Failure(code="canceled", message="canceled on request"),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        fingerprint=fingerprint(body) if not frozen.cut else "",
        request=frozen,
    ).to_json()
