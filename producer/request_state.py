"""Reads the state of a request from the store: queued, processing, or how it ended.

A request moves one way: request object, claim, result. Each exists before the one before it is deleted.
So looking in that order finds a request, however fast it moves.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from infra.claims.claim import Claim
from infra.claims.trainings import TrainingStore
from infra.stores.store import Info, InvalidKey, Store
from producer.errors import Damaged, UnknownRequest, UnknownTraining
from producer.liveness import looks_alive
from schemas.errors import NotFound, TooLarge
from schemas.layout import (
    BATCH,
    CLAIMS,
    EXPRESS,
    REQUESTS,
    RESULTS,
    SINGLE,
    WORKERS,
    claims_prefix,
    is_batch,
    is_request,
    parse_claim,
    parse_result,
    request_id,
    result_key,
    status_key,
)
from schemas.result import Progress, Result, Status
from schemas.training import TrainingProgress

RequestStatus = Literal["queued", "processing"] | Status

_MADE_SAFE = re.compile(r"-[0-9a-f]{8}$")  # see schemas.layout.safe_id

MOST = 5000  # keys that are listed for a hint
MAX_RESULT, MAX_STATUS = 128 << 20, 1 << 20  # bytes of a result manifest and of a status that are read
MAX_COUNT = 10**9  # steps and images of a status that is believed


@dataclass(frozen=True, slots=True)
class State:
    """The state of a request."""

    id: str
    status: RequestStatus
    position: int | None = None  # queued: about how many requests are ahead of it
    progress: Progress | None = None  # processing: what its worker last reported
    result: Result | None = None  # ended
    source: str = ""  # the key of the dropped file, where its body has this id and its path is another name

    @property
    def over(self) -> bool:
        return self.result is not None


async def read_result(store: Store, id: str) -> Result | None:
    """The result of a request; None while it has none.

    A result manifest that cannot be read is returned as one that failed and says so, because it is there for ever:
    lists show it among the others, and nobody waits for it.
    """
    try:
        return Result.model_validate_json((await store.get(result_key(id), max_bytes=MAX_RESULT)).body)
    except (NotFound, InvalidKey):
        return None
    except (ValueError, TooLarge):
        return Result.damaged(id, result_key(id))


async def read_claim(store: Store, id: str) -> Claim | None:
    """The latest claim of a request; None if there is none. Raises `Damaged` for one that cannot be read."""
    latest: tuple[int, str] | None = None
    async for info in store.list(claims_prefix(id)):
        claimed = parse_claim(info.key)
        if claimed and claimed[0] == id and not claimed[2]:
            latest = (claimed[1], info.key)
    if latest is None:
        return None
    try:
        return Claim.model_validate_json((await store.get(latest[1])).body)
    except NotFound:
        return None  # it ended just now
    except ValueError as error:
        raise Damaged(latest[1], "cannot be read") from error


async def _is_claimed(store: Store, id: str) -> bool:
    try:
        return await read_claim(store, id) is not None
    except Damaged:
        return True


async def owner(store: Store, id: str) -> Claim | Result | None:
    """The result that has an id, else the claim: it tells which body the id stands for.

    A claim beside the result of another body tells nothing: a worker claims an id before it looks for its result.
    """
    claim = await read_claim(store, id)
    return await read_result(store, id) or claim


def request_keys(id: str) -> list[str]:
    """The keys under which an id's request may have been dropped."""
    return [f"{lane}{id}{kind}" for lane in (REQUESTS, EXPRESS) for kind in (SINGLE, BATCH)]


async def find_request(store: Store, id: str) -> Info | None:
    """The request object that was dropped for an id; None if it is not there, or no longer."""
    for key in request_keys(id):
        info = await store.head(key)
        if info is not None:
            return info
    if _MADE_SAFE.search(id):  # the file's name was not an id, so the key does not follow from it
        async for info in first(store.list(REQUESTS), MOST):
            if is_request(info.key) and request_id(info.key) == id:
                return info
    return None


async def read_progress(store: Store, id: str) -> Progress | None:
    """What a request's worker last reported; None if nothing, or nothing that can be read.

    That of a training is a `TrainingProgress`.
    """
    kind = TrainingProgress if isinstance(store, TrainingStore) else Progress
    with contextlib.suppress(NotFound, ValueError, TooLarge, InvalidKey):
        progress = kind.model_validate_json((await store.get(status_key(id), max_bytes=MAX_STATUS)).body)
        if (
            progress.id == id
            and max(progress.steps_done, progress.steps_total, progress.images_total) < MAX_COUNT
        ):
            return progress
    return None


async def state_of(store: Store, id: str) -> State:
    """The state of a request. Raises `UnknownRequest`, with the nearest known ids."""
    result = await read_result(store, id)
    if result is not None:
        return State(id, result.status, result=result)
    request = await find_request(store, id)
    if await _is_claimed(store, id):
        return State(id, "processing", progress=await read_progress(store, id))
    result = await read_result(store, id)  # again: it may have ended between the first two looks
    if result is not None:
        return State(id, result.status, result=result)
    if request is not None:
        return State(id, "queued", position=await position(store, request))
    if await _is_row_of_a_known_batch(store, id):
        return State(id, "queued")
    unknown = UnknownTraining if isinstance(store, TrainingStore) else UnknownRequest
    raise unknown(id, store.url, difflib.get_close_matches(id, await known_ids(store), 3, 0.6))


async def is_known(store: Store, id: str) -> bool:
    """Whether a request, claim or result has this id."""
    return (
        await find_request(store, id) is not None
        or await _is_claimed(store, id)
        or await store.head(result_key(id)) is not None
        or await _is_row_of_a_known_batch(store, id)
    )


async def _is_row_of_a_known_batch(store: Store, id: str) -> bool:
    """Whether an id may be a row that its batch's worker has not dropped yet."""
    batch = id.rpartition("/")[0]
    if not batch:
        return False
    request = await find_request(store, batch)
    if request is not None and is_batch(request.key):
        return True
    claim = await read_claim(store, batch)
    return claim is not None and claim.batch


async def position(store: Store, request: Info) -> int:
    """About how many requests are ahead: those in its lane that were dropped earlier."""
    lane = EXPRESS if request.key.startswith(EXPRESS) else REQUESTS
    ahead = 0
    async for info in first(store.list(lane), MOST):
        ahead += is_request(info.key) and (info.modified, info.key) < (request.modified, request.key)
    return ahead


async def known_ids(store: Store) -> list[str]:
    """Up to `MOST` ids of each kind that exist, for a hint."""
    ids: dict[str, None] = {}
    async for info in first(store.list(REQUESTS), MOST):
        ids[request_id(info.key)] = None
    async for info in first(store.list(CLAIMS), MOST):
        claimed = parse_claim(info.key)
        if claimed:
            ids[claimed[0]] = None
    async for info in first(store.list(RESULTS), MOST):
        if id := parse_result(info.key):
            ids[id] = None
    return list(ids)


async def namesakes(store: Store, id: str) -> list[str]:
    """Ids of the results of other requests that were dropped under the same name: `<id>~<hash>`."""
    return [
        namesake
        async for info in first(store.list(f"{RESULTS}{id}~"), MOST)
        if (namesake := parse_result(info.key))
    ]


async def workers_alive(store: Store) -> int:
    """About how many workers are alive: one look goes by the heartbeats' dates."""
    return sum([looks_alive(info) async for info in store.list(WORKERS)])


async def first(infos: AsyncIterator[Info], most: int) -> AsyncIterator[Info]:
    """The first `most` of them."""
    count = 0
    async for info in infos:
        yield info
        count += 1
        if count >= most:
            return
