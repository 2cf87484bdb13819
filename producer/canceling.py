"""Cancels a request by creating its result: whoever creates it first decides how the request ended.

A result answers one body, by its fingerprint. So the client first finds out which body the id stands for
now. Another body that is dropped under the same name later is another request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.claims import kept_request
from producer import ids, request_state
from producer.errors import Damaged, UnknownRequest
from schemas.batch import split_rows
from schemas.errors import NotFound, Rejected, StoreUnavailable
from schemas.layout import (
    CLAIMS,
    REQUESTS,
    fingerprint,
    is_batch,
    oversize_fingerprint,
    parse_claim,
    request_id,
    result_key,
)
from schemas.result import Failure, Frozen, Result

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from schemas.limits import Limits

UNREADABLE = "canceled on request; its claim cannot be read, so the request is not kept in the result"
LOOKS = 5  # a request may move on between two looks; more often is not chance


@dataclass(frozen=True, slots=True)
class Body:
    """The body that an id stands for."""

    frozen: Frozen
    fingerprint: str
    batch: bool  # it may have rows
    source: Info | None = None  # the request object that holds it


async def cancel(store: Store, name: str, limits: Limits) -> request_state.State:
    """Cancel a request; for a batch, also its rows that have not ended. Returns how it ended.

    Args:
        name: its id, or the path of its file, even if the body has another id.

    Raises:
        UnknownRequest: nobody has submitted this id.
    """
    for _ in range(LOOKS):
        state = await ids.state_of(store, name, limits)
        id = state.id
        if state.over:
            return state
        body = await _body(store, state, limits)  # before the result, which must carry its fingerprint
        if body is not None:
            break
    else:
        raise StoreUnavailable(f"{name!r} moved on each time before it could be canceled; try again")
    frozen = await kept_request.keep(store, id, body.frozen, body.fingerprint, batch=body.batch)
    result = _canceled(id, body).model_copy(update={"request": frozen})
    won = await store.create(result_key(id), result.to_json(), content_type="application/json")
    # Only after the result exists: until then the request object is all that remembers the request. And in
    # the version that was read: another body under this key is another request. If we lost, the winner deletes it.
    if won and body.source is not None:
        await store.delete(body.source.key, etag=body.source.etag)
    # The rows come last: a worker whose batch has no open rows left would create the batch's result before us.
    if won and body.batch:
        await _cancel_rows(store, id, limits)
    return await request_state.state_of(store, id)


async def _body(store: Store, state: request_state.State, limits: Limits) -> Body | None:
    """The body of the claim, else of the request object, else of the batch's row; None when it moved on."""
    id = state.id
    # The object before the claim: a request moves in this direction, so it cannot slip past both looks.
    source = await (store.head(state.source) if state.source else request_state.find_request(store, id))
    try:
        claim = await request_state.read_claim(store, id)
    except (
        Damaged
    ):  # no worker can read it either; without a body the result answers any, see `claim.answers`
        return await _source_body(store, id, source, limits) or Body(
            Frozen(text="", cut=True), "", batch=True
        )
    if claim is not None:  # what lies under its key now may be another body, which gets its own result
        return Body(claim.frozen, claim.fingerprint, claim.batch)
    return await _source_body(store, id, source, limits) if source else await _row(store, id, limits)


async def _source_body(store: Store, id: str, source: Info | None, limits: Limits) -> Body | None:
    """The body of a request object; None when it is gone, or not this request any more."""
    if source is None:
        return None
    batch = is_batch(source.key)
    if source.size > (limits.max_batch_bytes if batch else limits.max_body_bytes):
        print_ = oversize_fingerprint(source.key, source.size, source.etag)
        return Body(Frozen(text="", cut=True), print_, batch, source)
    try:
        stored = await store.get(source.key)
    except NotFound:
        return None
    if not batch and (await ids.id_of_body(store, stored.body) or request_id(source.key)) != id:
        return None  # it was edited in between, and has another id now
    frozen = Frozen.of(stored.body, keep=limits.max_body_bytes)
    return Body(frozen, fingerprint(stored.body), batch, stored.info)


async def _row(store: Store, id: str, limits: Limits) -> Body | None:
    """A row that its batch's worker has not dropped yet, read from the batch itself."""
    batch = id.rpartition("/")[0]
    claim = await request_state.read_claim(store, batch) if batch else None
    if claim is not None:
        whole = claim.frozen.body()
    else:
        source = await request_state.find_request(store, batch) if batch else None
        if source is None or not is_batch(source.key):
            return None
        try:
            whole = (await store.get(source.key)).body
        except NotFound:
            return None
    try:
        rows = split_rows(batch, whole, limits)
    except Rejected:
        rows = []
    for row in rows:
        if row.id == id:
            return Body(Frozen.of(row.body, keep=limits.max_body_bytes), fingerprint(row.body), False)
    raise UnknownRequest(id, store.url, [row.id for row in rows[:3]])


async def _cancel_rows(store: Store, batch: str, limits: Limits) -> None:
    rows: set[str] = set()
    async for info in store.list(f"{REQUESTS}{batch}/"):
        rows.add(request_id(info.key))
    async for info in store.list(f"{CLAIMS}{batch}/"):
        claim = parse_claim(info.key)
        if claim:
            rows.add(claim[0])
    rows.discard(batch)
    for row in sorted(rows):
        try:
            await cancel(store, row, limits)
        except UnknownRequest:
            continue  # it ended while we looked


def _canceled(id: str, body: Body) -> Result:
    return Result.ended(
        id,
        "canceled",
        Failure(code="canceled", message="canceled on request" if body.fingerprint else UNREADABLE),
        request=body.frozen,
        fingerprint=body.fingerprint,
        metadata={} if body.batch else None,
    )
