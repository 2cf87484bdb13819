"""Batches: a JSON Lines file of requests that are drawn together, with summary files."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from infra.stores.store import Store, Stored
from producer import collect
from producer.request_state import State
from producer.requests import fresh_id
from producer.web import responses
from producer.web.accept import FORMATS, OCTETS, type_for
from producer.web.caller import Caller, FacadeOf, body, new_id, own_id, refuse_form
from producer.web.openapi import BINARY, errors, file_response
from producer.web.responses import Job
from schemas.errors import NotFound
from schemas.layout import is_id, result_folder
from schemas.result import BatchCounts

router = APIRouter(tags=["Batches"])
FILES = {
    "results": "application/jsonl",
    "errors": "application/jsonl",
    "gallery": "text/html",
    "contact_sheet": "image/png",
}
PICTURE = re.compile(r"[0-9]{1,6}\.(png|jpg|webp)")
TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}  # by the ending of the file
#: A gallery is one self-contained page: its pictures and style are inline, and it has no scripts.
GALLERY_POLICY = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; sandbox"


LINES = "The file itself, one JSON object per line. Its Content-Type is not looked at."
#: As text, which Swagger UI shows and sends as it is (it quotes the lines of a type with "json" in its name), and as
#: a file.
LINES_CONTENT = {
    "text/plain": {
        "schema": {"type": "string"},
        "example": '{"custom_id": "a", "prompt": "a red circle on a blue background"}\n'
        '{"custom_id": "b", "prompt": "a yellow star on a black background"}\n',
    },
    OCTETS: {"schema": BINARY},
}


class Batch(BaseModel):
    """The state of a batch."""

    id: str = Field(description="The batch's id.")
    status: str = Field(description="queued, processing, succeeded, partial, failed, canceled or expired.")
    position: int | None = Field(
        None, description="While queued: about how many requests are ahead of this one."
    )
    counts: BatchCounts | None = Field(None, description="How the rows ended, once all have.")
    rows: list[Job] = Field([], description="Finished rows, at most as many as were asked for.")
    done: int = Field(0, description="Finished rows.")
    total: int | None = Field(None, description="All rows; null while the batch is queued.")
    files: dict[str, str] = Field(
        {},
        description="Of a finished batch: results, errors, gallery and contact_sheet, and their addresses.",
    )


@router.post(
    "/batches",
    status_code=202,
    response_model=Batch,
    responses=errors(401, 404, 409, 413, 422, 429, 503),
    openapi_extra={"requestBody": {"required": True, "description": LINES, "content": LINES_CONTENT}},
    summary="Queue a file of requests, one JSON object per line",
)
async def queue_batch(
    request: Request,
    facade: FacadeOf,
    caller: Caller,
    id: Annotated[str | None, Query(description="The batch's id; by default a new one.")] = None,
) -> Response:
    lines = await body(request, facade.settings.limits.max_batch_bytes)
    refuse_form(request, lines, "the file itself, one JSON object per line (curl: --data-binary @FILE)")
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
    responses={200: file_response(*dict.fromkeys(FILES.values())), **errors(404)},
    summary="Get a summary file: results, errors, gallery (or gallery-2.html, ...) or contact_sheet",
)
async def get_batch_file(id: str, name: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    state = await facade.state(own_id(caller, id))
    batch = state.result.batch if state.result else None
    key = getattr(batch, name, "") if name in FILES else ""
    if batch is not None and not key:  # the pages of a gallery link to each other by their files' names
        key = next((page for page in batch.gallery_keys() if page.endswith(f"/{name}")), "")
        name = "gallery"
    if not key:
        raise HTTPException(404, f"{id} has no {name}; a finished batch has {', '.join(FILES)}")
    stored = await _stored(facade.client.store, key)
    headers = {"Content-Security-Policy": GALLERY_POLICY} if name == "gallery" else {}
    return Response(stored.body, media_type=type_for(request, FILES[name]), headers=headers)


async def _stored(store: Store, key: str) -> Stored:
    """An object of a finished batch; somebody may have removed it."""
    try:
        return await store.get(key)
    except NotFound as error:
        raise HTTPException(404, f"{key} is not there, or no longer") from error


@router.get(
    "/batches/{id:path}/files/{row}/{picture}",
    response_class=Response,
    responses={200: file_response(*FORMATS, text="The picture."), **errors(404)},
    summary="Get a picture by the link that the gallery has",
)
async def get_batch_picture(
    id: str, row: str, picture: str, request: Request, facade: FacadeOf, caller: Caller
) -> Response:
    name = f"{own_id(caller, id)}/{row}"
    found = PICTURE.fullmatch(picture)
    if found is None or not is_id(name):
        raise HTTPException(404, f"{id} has no picture {row}/{picture}")
    stored = await _stored(facade.client.store, result_folder(name) + picture)
    return Response(stored.body, media_type=type_for(request, TYPES[found[1]]))


@router.get("/batches/{id:path}", responses=errors(401, 404), summary="Get the state of a batch")
async def get_batch(
    id: str,
    facade: FacadeOf,
    caller: Caller,
    rows: Annotated[int, Query(ge=0, le=1000, description="The most rows to list.")] = 100,
) -> Batch:
    """Includes its finished rows."""
    id = own_id(caller, id)
    state = await facade.state(id)
    result = state.result
    if result is not None and result.batch is None and not (result.failure and result.task is None):
        raise HTTPException(404, f"{id} is a single request: see GET /jobs/{id}")
    jobs = await _finished_rows(facade.client.store, id, rows) if state.status != "queued" else []
    return Batch(id=id, status=state.status, position=state.position, rows=jobs, **_progress(state))


def _progress(state: State) -> dict[str, Any]:
    """The fields of a `Batch` that say how many rows have finished."""
    batch = state.result.batch if state.result else None
    if batch is not None:
        files = {name: f"/batches/{state.id}/files/{name}" for name in FILES if getattr(batch, name)}
        return {
            "counts": batch.counts,
            "done": batch.counts.total,
            "total": batch.counts.total,
            "files": files,
        }
    if state.progress is not None:
        return {"done": state.progress.images_done, "total": state.progress.images_total or None}
    return {}


async def _finished_rows(store: Store, id: str, limit: int) -> list[Job]:
    jobs: list[Job] = []
    if limit:
        async for row in collect.rows(store, id):
            jobs.append(responses.job_of_result(row))
            if len(jobs) >= limit:
                break
    return jobs
