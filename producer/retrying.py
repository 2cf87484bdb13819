"""Prepares the retry of a request that did not succeed, under a new id: results are written once.

The request is read from its result, byte for byte, so nothing else has to be kept. Of a batch only the rows
that did not succeed are submitted again. The lines of the others become blank, because a row without an id
is named after its line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.claims import kept_request
from infra.gather import gather_bounded
from producer import request_state
from producer.errors import NothingToRetry
from producer.requests import Ticket
from schemas.batch import Row, split_rows
from schemas.errors import Rejected
from schemas.layout import MAX_SEGMENT_BYTES
from schemas.manifest import parse_manifest
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Store
    from schemas.limits import Limits

AT_ONCE = 16  # rows' results read at the same time
_ENDING = re.compile(r"-r(\d{1,4})$")


@dataclass(frozen=True, slots=True)
class Retry:
    """A request that was submitted again."""

    id: str  # the new one
    was: str  # how the first request ended
    ticket: Ticket | None  # None: it was retried before, and nothing was submitted now


@dataclass(frozen=True, slots=True)
class Prepared:
    """What to submit for a retry."""

    id: str
    body: bytes
    batch: bool
    was: str
    there: bool = False  # this retry is waiting, being drawn or has succeeded: submit nothing


async def prepare(store: Store, id: str, limits: Limits) -> Prepared:
    """What to submit so that `id` is drawn again. Raises as `AsyncClient.retry` does."""
    state = await request_state.state_of(store, id)
    result = state.result
    if result is None:
        raise NothingToRetry(
            id, f"has not ended: it is {state.status}; wait for it, or run `dreamdrop cancel {id}` first"
        )
    if result.status == "succeeded":
        raise NothingToRetry(id, "succeeded; to draw it once more, submit it under another id")
    result = await kept_request.with_request(store, result)
    if result.request.cut:
        raise NothingToRetry(
            id, "cannot be retried: its result holds only the beginning of the request; submit the file again"
        )
    body = result.request.body()
    batch = result.batch is not None or await _is_batch(id, body, limits)
    if batch:
        body = await _open_rows(store, id, body, limits)
    for number in range(_number(id) + 1, 10_000):
        new = _new_id(id, number)
        earlier = await request_state.read_result(store, new)
        if earlier is not None and earlier.status != "succeeded":
            continue
        if earlier is not None or await _is_in_progress(store, new):
            return Prepared(new, b"", batch, result.status, there=True)
        return Prepared(new, body if batch else _renamed(body, new), batch, result.status)
    raise NothingToRetry(id, "was retried too often; submit it under another id")


async def _is_in_progress(store: Store, id: str) -> bool:
    """Whether this very id waits or is being drawn; a row of a batch in progress has another one."""
    # The object before the claim: a request moves in this direction, so it cannot slip past both looks.
    waits = await request_state.find_request(store, id) is not None
    return waits or await request_state.read_claim(store, id) is not None


def _number(id: str) -> int:
    ending = _ENDING.search(id)
    return int(ending[1]) if ending else 1


def _new_id(id: str, number: int) -> str:
    """`a` becomes `a-r2`; characters that a client may not choose are replaced."""
    ending = f"-r{number}"
    parts = [re.sub(r"^[._~-]+", "", part).replace("~", "-") or "request" for part in id.split("/")]
    last = _ENDING.sub("", parts[-1])[: MAX_SEGMENT_BYTES - len(ending)]
    return "/".join([*parts[:-1], last + ending])


def _renamed(body: bytes, id: str) -> bytes:
    """A manifest with an id gets the new one. Raises `Rejected`."""
    document = load_object(body)
    if document.get("id") is None:
        return body
    return json.dumps({**document, "id": id}, ensure_ascii=False).encode()


async def _is_batch(id: str, body: bytes, limits: Limits) -> bool:
    """Whether a canceled or refused request was a batch: it is not a manifest, but its lines are."""
    try:
        parse_manifest(body, limits)
    except Rejected:
        try:
            return len(split_rows(id, body, limits)) > 1
        except Rejected:
            return False
    return False


async def _open_rows(store: Store, batch: str, body: bytes, limits: Limits) -> bytes:
    """The batch with only those rows that did not succeed."""

    async def succeeded(row: Row) -> bool:
        result = await request_state.read_result(store, row.id)
        return result is not None and result.status == "succeeded"

    rows = split_rows(batch, body, limits)
    done = await gather_bounded(rows, AT_ONCE, succeeded)
    if all(done):
        raise NothingToRetry(batch, "needs no retry: all of its rows succeeded")
    lines = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for row, over in zip(rows, done, strict=True):
        if over:
            lines[row.line - 1] = b""
    return b"\n".join(lines)
