"""Batches: a JSON Lines file of requests, drawn as one, with a summary and a gallery."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from producer import collect
from producer.requests import fresh_id
from producer.web import responses
from producer.web.api.jobs import REFUSED, UNKNOWN
from producer.web.caller import Caller, FacadeOf, body, make_sure_it_is_no_form, new_id, own_id
from producer.web.openapi import ERRORS, problem
from producer.web.responses import Job
from schemas.result import BatchCounts

router = APIRouter(tags=["Batches"])
FILES = {
    "results": "application/jsonl",
    "errors": "application/jsonl",
    "gallery": "text/html",
    "contact_sheet": "image/png",
}


class Batch(BaseModel):
    """How far a batch is."""

    id: str
    status: str
    position: int | None = None
    counts: BatchCounts | None = None
    rows: list[Job] = []
    done: int = 0  # rows that are over
    total: int | None = None  # rows; None while it is queued
    files: dict[str, str] = {}  # of a batch that is over: what, and where to get it


@router.post(
    "/batches",
    status_code=202,
    response_model=Batch,
    responses={**REFUSED, 409: ERRORS[409]},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/jsonl": {
                    "schema": {"type": "string"},
                    "example": '{"custom_id": "a", "prompt": "a red circle on a blue background"}\n'
                    '{"custom_id": "b", "prompt": "a yellow star on a black background"}\n',
                }
            },
        }
    },
    summary="Queue a file of requests, one JSON object a line",
)
async def post(
    request: Request,
    facade: FacadeOf,
    caller: Caller,
    id: Annotated[str | None, Query(description="Names the batch; left out, it gets one.")] = None,
) -> Response:
    lines = await body(request, facade.settings.limits.max_batch_bytes)
    make_sure_it_is_no_form(
        request, lines, "the file itself, one JSON object a line (curl: --data-binary @FILE)"
    )
    name = new_id(caller, id) if id else caller.id(fresh_id())
    ticket = await facade.submit_batch(lines, name, caller, chosen=bool(id))
    return Response(
        Batch(id=ticket.id, status="queued").model_dump_json(exclude_defaults=True),
        202,
        {"Location": f"/batches/{ticket.id}"},
        media_type="application/json",
    )


@router.get(
    "/batches/{id:path}/files/{name}",
    response_class=Response,
    responses={404: UNKNOWN},
    summary="A batch's summary: results, errors, gallery or contact_sheet",
)
async def file(id: str, name: str, facade: FacadeOf, caller: Caller) -> Response:
    state = await facade.state(own_id(caller, id))
    key = (
        getattr(state.result.batch, name, "") if state.result and state.result.batch and name in FILES else ""
    )
    if not key:
        raise HTTPException(404, f"{id} has no {name}; a batch that is over has {', '.join(FILES)}")
    stored = await facade.client.store.get(key)
    headers = {"Content-Security-Policy": GALLERY_POLICY} if name == "gallery" else {}
    return Response(stored.body, media_type=FILES[name], headers=headers)


#: A gallery is one self-contained page: its pictures and its style are inside, and nothing runs.
GALLERY_POLICY = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; sandbox"


@router.get("/batches/{id:path}", responses={404: UNKNOWN, 401: problem("A key is needed.")})
async def get(
    id: str,
    facade: FacadeOf,
    caller: Caller,
    rows: Annotated[int, Query(ge=0, le=1000, description="How many rows to list.")] = 100,
) -> Batch:
    """How far a batch is, and its rows that are over."""
    id = own_id(caller, id)
    state = await facade.state(id)
    result = state.result
    if result is not None and result.batch is None and not (result.failure and result.task is None):
        raise HTTPException(404, f"{id} is a single request: see GET /jobs/{id}")
    facts: dict[str, Any] = {"id": id, "status": state.status, "position": state.position}
    if result is not None and result.batch is not None:
        facts |= {"counts": result.batch.counts, "done": result.batch.counts.total}
        facts |= {"total": result.batch.counts.total}
        files = {name: f"/batches/{id}/files/{name}" for name in FILES if getattr(result.batch, name)}
        facts["files"] = files
    elif state.progress is not None:
        facts |= {"done": state.progress.images_done, "total": state.progress.images_total or None}
    found: list[Job] = []
    if rows and state.status != "queued":
        async for row in collect.rows(facade.client.store, id):
            found.append(responses.finished(row))
            if len(found) >= rows:
                break
    return Batch(rows=found, **facts)
