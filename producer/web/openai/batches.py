"""OpenAI's batches: a file of their requests becomes a batch of ours.

All lines are checked when the batch is made: one that has a mistake is `failed` at once, with line numbers, and
nothing of it is drawn. What a batch was made of is kept in the store; how far it is, its own rows tell.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from infra.stores.store import Store
from producer.errors import UnknownRequest
from producer.request_state import State
from producer.requests import fresh_id
from producer.web.caller import Caller, FacadeOf, document
from producer.web.facade import Facade
from producer.web.openai import files
from producer.web.openai.batch_input import AT_ONCE, ENDPOINT, LineFault, Tally, read_lines
from producer.web.openai.batch_output import ERRORS, OUTPUT
from producer.web.openai.errors import LOOKING, documented
from producer.web.openai.fields import refused
from producer.web.openai.results import seconds
from schemas.errors import NotFound
from schemas.layout import UPLOADS

router = APIRouter(prefix="/v1", tags=["OpenAI"])
FOLDER = f"{UPLOADS}openai/batches/"
WINDOW = 24 * 3600  # seconds
PAIRS = 16  # of metadata, at most
FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata")


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Faults(BaseModel):
    object: str = "list"
    data: list[LineFault]


class Batch(BaseModel):
    """A batch, as they describe it. Moments are in seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str = ENDPOINT
    errors: Faults | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str = Field("in_progress", description="in_progress, completed, failed, expired or cancelled.")
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class Batches(BaseModel):
    object: str = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@router.post(
    "/batches",
    response_model=Batch,
    responses={**LOOKING, **documented(409, 413)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "required": list(FIELDS[:3])},
                    "example": {
                        "input_file_id": "file-...",
                        "endpoint": ENDPOINT,
                        "completion_window": "24h",
                        "metadata": {"for": "the catalogue"},
                    },
                }
            },
        }
    },
    summary="Draw all requests of an uploaded file",
)
async def post(request: Request, facade: FacadeOf, caller: Caller) -> Batch:
    asked = await document(request)
    _check(asked)
    file = await files.known(asked["input_file_id"], facade, caller)
    lines = await files.lines_of(file, facade.client.store)
    now = int(time.time())
    read = await asyncio.to_thread(read_lines, lines, facade.settings.limits, now + WINDOW)
    made = Batch(
        id=caller.id(f"batch_{fresh_id()}"),
        input_file_id=file.id,
        created_at=now,
        in_progress_at=now,
        expires_at=now + WINDOW,
        request_counts=Counts(total=len(read.rows)),
        metadata=asked.get("metadata"),
    )
    if read.faults:
        made.status, made.failed_at, made.in_progress_at = "failed", now, None
        made.errors, made.request_counts = Faults(data=read.faults), Counts()
    body = made.model_dump_json().encode()
    await facade.client.store.put(f"{FOLDER}{made.id}.json", body, content_type="application/json")
    if not read.faults:
        await facade.submit_batch(b"\n".join(read.rows) + b"\n", made.id, caller)
    return made


def _check(asked: dict[str, Any]) -> None:
    """Raises `Rejected`."""
    for name, value in asked.items():
        if name not in FIELDS and value is not None:
            raise refused(name[:60], f"is unknown here; a batch has {', '.join(FIELDS)}")
    if not isinstance(asked.get("input_file_id"), str):
        raise refused("input_file_id", "should be the id of a file from POST /v1/files")
    if asked.get("endpoint") != ENDPOINT:
        raise refused("endpoint", f"should be {ENDPOINT!r}")
    if asked.get("completion_window") != "24h":
        raise refused("completion_window", "should be '24h'")
    pairs = asked.get("metadata")
    if pairs is not None and (
        not isinstance(pairs, dict)
        or len(pairs) > PAIRS
        or not all(isinstance(v, str) for v in pairs.values())
    ):
        raise refused("metadata", f"should be an object of at most {PAIRS} texts")


@router.get("/batches", responses=LOOKING, summary="Batches, the newest first")
async def batches(
    request: Request,
    facade: FacadeOf,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> Batches:
    store = facade.client.store
    ids, more = await files.page(store, FOLDER, caller, after=after, limit=limit, order="desc")
    gate = asyncio.Semaphore(AT_ONCE)

    async def look(id: str) -> Batch:
        async with gate:
            return await _now(id, request, facade)

    found = list(await asyncio.gather(*map(look, ids)))
    return Batches(
        data=found, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=more
    )


@router.get("/batches/{id}", responses=LOOKING, summary="How far a batch is")
async def one(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Batch:
    return await _now(files.theirs(caller, id, "batch"), request, facade)


@router.post("/batches/{id}/cancel", responses=LOOKING, summary="Cancel what is not over of a batch")
async def cancel(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Batch:
    """What was drawn before stays, and is in the output file."""
    batch = await _now(files.theirs(caller, id, "batch"), request, facade)
    if batch.status != "in_progress":
        return batch
    return await _now(batch.id, request, facade, await facade.client.cancel(batch.id))


async def _now(id: str, request: Request, facade: Facade, state: State | None = None) -> Batch:
    """A batch as it is now, or as a state says that was just seen. Raises 404."""
    try:
        made = Batch.model_validate_json((await facade.client.store.get(f"{FOLDER}{id}.json")).body)
    except NotFound as error:
        text = f"there is no batch {id[:100]!r}; GET /v1/batches lists those that there are"
        raise HTTPException(404, text) from error
    if made.status == "failed":
        return made
    try:
        state = state or await facade.client.status(id)
    except UnknownRequest:  # the server ended between describing it and queueing it
        fault = LineFault(code="not_queued", message="it was never queued; make the batch again")
        return made.model_copy(update={"status": "failed", "errors": Faults(data=[fault])})
    return await _as_of(state, made, request.app.state.tally, facade.client.store)


async def _as_of(state: State, made: Batch, tally: Tally, store: Store) -> Batch:
    id, result = made.id, state.result
    if result is None:
        good, bad = await tally.count(store, id) if state.status != "queued" else (0, 0)
        return made.model_copy(update={"request_counts": _counts(made, good, bad)})
    if result.batch is not None:
        good = result.batch.counts.succeeded + result.batch.counts.partial
        bad = result.batch.counts.total - good
    else:
        good, bad = await tally.count(store, id)
    word = {"canceled": "cancelled", "expired": "expired"}.get(result.status, "completed")
    if word == "completed" and result.batch is None:
        word = "failed"
    facts: dict[str, Any] = {"status": word, f"{word}_at": seconds(result.finished_at)}
    if word == "failed" and result.failure is not None:
        fault = LineFault(code=result.failure.code, message=result.failure.message, line=result.failure.line)
        facts["errors"] = Faults(data=[fault])
    facts |= {"output_file_id": id + OUTPUT} if good else {}
    facts |= {"error_file_id": id + ERRORS} if bad else {}
    return made.model_copy(update={**facts, "request_counts": _counts(made, good, bad)})


def _counts(made: Batch, good: int, bad: int) -> Counts:
    return Counts(total=made.request_counts.total, completed=good, failed=bad)
