"""OpenAI's batches: a file of OpenAI requests becomes a batch.

All lines are checked when the batch is created: a batch with a mistake is `failed` at once, with line numbers, and
none of it is drawn. The store keeps the batch's description; its progress is counted from its rows.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from infra.gather import gather_bounded
from infra.stores.store import Store
from producer.errors import Damaged, UnknownRequest
from producer.request_state import State
from producer.requests import fresh_id
from producer.web.caller import Caller, FacadeOf, document
from producer.web.facade import Facade
from producer.web.openai import files
from producer.web.openai.batch_input import AT_ONCE, ENDPOINT, LineFault, Tally, read_lines
from producer.web.openai.batch_output import ERRORS, OUTPUT
from producer.web.openai.errors import READ_ERRORS, errors
from producer.web.openai.results import unix_seconds
from producer.web.openapi import request_body
from schemas.errors import NotFound, Rejected
from schemas.layout import UPLOADS
from schemas.result import Result

router = APIRouter(prefix="/v1", tags=["OpenAI"])
FOLDER = f"{UPLOADS}openai/batches/"
WINDOW = 24 * 3600  # seconds
MAX_METADATA = 16  # keys
FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata")


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Faults(BaseModel):
    object: str = "list"
    data: list[LineFault]


class OpenAIBatch(BaseModel):
    """A batch, as OpenAI describes it. Times are in seconds since 1970."""

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


class OpenAIBatches(BaseModel):
    object: str = "list"
    data: list[OpenAIBatch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


@router.post(
    "/batches",
    response_model=OpenAIBatch,
    responses={**READ_ERRORS, **errors(409, 413)},
    openapi_extra=request_body(
        {"type": "object", "required": list(FIELDS[:3])},
        example={
            "input_file_id": "file-...",
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "metadata": {"for": "the catalogue"},
        },
    ),
    summary="Draw the requests of an uploaded file",
)
async def create_batch(request: Request, facade: FacadeOf, caller: Caller) -> OpenAIBatch:
    fields = await document(request)
    _check(fields)
    file = await files.uploaded_file(fields["input_file_id"], facade, caller)
    lines = await files.lines_of(file, facade.client.store)
    now = int(time.time())
    parsed = await asyncio.to_thread(read_lines, lines, facade.settings.limits, now + WINDOW)
    batch = OpenAIBatch(
        id=caller.id(f"batch_{fresh_id()}"),
        input_file_id=file.id,
        created_at=now,
        in_progress_at=now,
        expires_at=now + WINDOW,
        request_counts=Counts(total=len(parsed.rows)),
        metadata=fields.get("metadata"),
    )
    if parsed.faults:
        batch.status, batch.failed_at, batch.in_progress_at = "failed", now, None
        batch.errors, batch.request_counts = Faults(data=parsed.faults), Counts()
    # Describe before queueing: a server that stops in between leaves a batch that can be seen and created again,
    # not rows that are drawn for nobody.
    body = batch.model_dump_json().encode()
    await facade.client.store.put(f"{FOLDER}{batch.id}.json", body, content_type="application/json")
    if not parsed.faults:
        await facade.submit_batch(b"\n".join(parsed.rows) + b"\n", batch.id, caller)
    return batch


def _check(fields: dict[str, Any]) -> None:
    """Check the body of a new batch. Raises `Rejected`."""
    for name, value in fields.items():
        if name not in FIELDS and value is not None:
            raise Rejected.of_field(name[:60], f"is an unknown field; a batch has {', '.join(FIELDS)}")
    if not isinstance(fields.get("input_file_id"), str):
        raise Rejected.of_field("input_file_id", "should be the id of a file from POST /v1/files")
    if fields.get("endpoint") != ENDPOINT:
        raise Rejected.of_field("endpoint", f"should be {ENDPOINT!r}")
    if fields.get("completion_window") != "24h":
        raise Rejected.of_field("completion_window", "should be '24h'")
    metadata = fields.get("metadata")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= MAX_METADATA
        and all(isinstance(value, str) for value in metadata.values())
    ):
        raise Rejected.of_field("metadata", f"should be an object with at most {MAX_METADATA} string values")


@router.get("/batches", responses=READ_ERRORS, summary="List batches, newest first")
async def list_batches(
    request: Request,
    facade: FacadeOf,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The last id of the previous page.")] = None,
) -> OpenAIBatches:
    store = facade.client.store
    ids, more = await files.page(store, FOLDER, caller, after=after, limit=limit, order="desc")

    async def current(id: str) -> OpenAIBatch | None:
        try:
            return await _current(id, request, facade)
        except (HTTPException, Damaged):  # its own address says what is wrong
            return None

    batches = [batch for batch in await gather_bounded(ids, AT_ONCE, current) if batch is not None]
    return OpenAIBatches(data=batches, **files.page_ends(ids), has_more=more)


@router.get("/batches/{id}", responses=READ_ERRORS, summary="Get one batch")
async def get_batch(id: str, request: Request, facade: FacadeOf, caller: Caller) -> OpenAIBatch:
    return await _current(files.full_id(caller, id, "batch"), request, facade)


@router.post("/batches/{id}/cancel", responses=READ_ERRORS, summary="Cancel the unfinished rows of a batch")
async def cancel_batch(id: str, request: Request, facade: FacadeOf, caller: Caller) -> OpenAIBatch:
    """Rows that were drawn before are in the output file."""
    batch = await _current(files.full_id(caller, id, "batch"), request, facade)
    if batch.status != "in_progress":
        return batch
    return await _current(batch.id, request, facade, await facade.client.cancel(batch.id))


async def _current(id: str, request: Request, facade: Facade, state: State | None = None) -> OpenAIBatch:
    """A batch as it is now, or in a state that was just read. Raises 404."""
    try:
        batch = OpenAIBatch.model_validate_json((await facade.client.store.get(f"{FOLDER}{id}.json")).body)
    except (NotFound, ValueError) as error:  # a ValueError: it is not one that this server wrote
        text = f"no batch has the id {id[:100]!r}; GET /v1/batches lists the batches"
        raise HTTPException(404, text) from error
    if batch.status == "failed":
        return batch
    try:
        state = state or await facade.client.status(id)
    except UnknownRequest:  # the server stopped after describing the batch, before queueing it
        fault = LineFault(code="not_queued", message="the batch was never queued; create it again")
        return batch.model_copy(update={"status": "failed", "errors": Faults(data=[fault])})
    completed, failed = await _row_counts(state, request.app.state.tally, facade.client.store)
    update: dict[str, Any] = {
        "request_counts": Counts(total=batch.request_counts.total, completed=completed, failed=failed)
    }
    if state.result is not None:
        update |= _outcome(state.result)
        update |= {"output_file_id": id + OUTPUT} if completed else {}
        update |= {"error_file_id": id + ERRORS} if failed else {}
    return batch.model_copy(update=update)


async def _row_counts(state: State, tally: Tally, store: Store) -> tuple[int, int]:
    """A batch's rows with pictures, and its finished rows without."""
    if state.status == "queued":
        return 0, 0
    if state.result is None or state.result.batch is None:
        return await tally.count(store, state.id)
    counts = state.result.batch.counts
    completed = counts.succeeded + counts.partial
    return completed, counts.total - completed


def _outcome(result: Result) -> dict[str, Any]:
    """The status of a finished batch, when it got it, and its errors."""
    status = {"canceled": "cancelled", "expired": "expired"}.get(result.status, "completed")
    if status == "completed" and result.batch is None:
        status = "failed"
    outcome: dict[str, Any] = {"status": status, f"{status}_at": unix_seconds(result.finished_at)}
    if status == "failed" and result.failure is not None:
        failure = result.failure
        fault = LineFault(code=failure.code, message=failure.message, line=failure.line)
        outcome["errors"] = Faults(data=[fault])
    return outcome
