"""OpenAI's files: uploads for batches, and the output files of batches.

An upload is two objects in the store, its bytes and then a small description, so every facade of this store knows
it. An output file is not stored: it is made from the batch's results while it is read.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from infra.gather import gather_bounded
from infra.stores.store import Store
from producer.requests import fresh_id
from producer.web.accept import type_for
from producer.web.api_keys import Key
from producer.web.caller import Caller, FacadeOf
from producer.web.openai import batch_output
from producer.web.openai.batch_input import AT_ONCE
from producer.web.openai.errors import READ_ERRORS, errors
from producer.web.openai.images import form
from producer.web.openapi import file_response, request_body
from schemas.errors import NotFound, Rejected
from schemas.layout import CHOSEN_ID, UPLOADS

router = APIRouter(prefix="/v1", tags=["OpenAI"])
FOLDER = f"{UPLOADS}openai/files/"
JSONL = "application/jsonl"
FORM_OVERHEAD = 1 << 20  # bytes of a form besides its file
Order = Literal["asc", "desc"]


class File(BaseModel):
    """A file, as OpenAI describes it."""

    id: str
    object: str = "file"
    bytes: int = Field(description="0 for an output file, which is made while it is read.")
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: str
    status: str = "processed"


class Files(BaseModel):
    object: str = "list"
    data: list[File]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Deleted(BaseModel):
    id: str
    object: str = "file"
    deleted: bool = True


@router.post(
    "/files",
    response_model=File,
    responses=errors(400, 401, 413, 503),
    openapi_extra=request_body(
        {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "purpose": {"type": "string", "enum": ["batch"]},
            },
        },
        content_type="multipart/form-data",
    ),
    summary="Upload the requests of a batch",
)
async def upload_file(request: Request, facade: FacadeOf, caller: Caller) -> File:
    limit = facade.settings.limits.max_batch_bytes + FORM_OVERHEAD
    async with await form(request, limit) as fields:
        for name in fields:
            if name not in ("file", "purpose"):
                raise Rejected.of_field(name[:60], "is not supported; files are kept until they are deleted")
        if fields.get("purpose") != "batch":
            raise Rejected.of_field("purpose", "should be 'batch'; other purposes are not supported")
        part = fields.get("file")
        if not isinstance(part, UploadFile):
            raise Rejected.of_field("file", "is missing; send the requests as a JSON Lines file")
        lines, name = await part.read(), part.filename or "batch.jsonl"
    file = File(
        id=caller.id(f"file-{fresh_id()}"),
        bytes=len(lines),
        created_at=int(time.time()),
        filename=name[:200],
        purpose="batch",
    )
    store = facade.client.store
    await store.put(f"{FOLDER}{file.id}.jsonl", lines, content_type=JSONL)
    await store.put(
        _description_key(file.id), file.model_dump_json().encode(), content_type="application/json"
    )
    return file


@router.get("/files", responses=READ_ERRORS, summary="List uploaded files")
async def list_files(
    facade: FacadeOf,
    caller: Caller,
    purpose: Annotated[str | None, Query(description="List only files with this purpose.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="The last id of the previous page.")] = None,
) -> Files:
    """Without output files: a batch names its own."""
    if purpose not in (None, "batch"):
        return Files(data=[])
    ids, more = await page(facade.client.store, FOLDER, caller, after=after, limit=limit, order=order)
    files = await gather_bounded(ids, AT_ONCE, lambda id: _read(facade.client.store, id))
    return Files(data=[file for file in files if file is not None], **page_ends(ids), has_more=more)


async def page(
    store: Store, folder: str, caller: Key, *, after: str | None, limit: int, order: Order
) -> tuple[list[str], bool]:
    """The caller's ids in a folder, ordered by age, and whether there are more."""
    prefix = folder + (f"{caller.prefix}." if caller.prefix else "")
    ids = [i.key[len(folder) : -5] async for i in store.list(prefix) if i.key.endswith(".json")]
    ids.sort(key=_age, reverse=order == "desc")
    if after is not None:
        last = _age(caller.id(after))
        ids = [id for id in ids if (_age(id) < last if order == "desc" else _age(id) > last)]
    return ids[:limit], len(ids) > limit


def page_ends(ids: list[str]) -> dict[str, Any]:
    """The fields that name the first and the last id of a page."""
    return {"first_id": ids[0], "last_id": ids[-1]} if ids else {}


def _age(id: str) -> str:
    return id.rpartition(".")[2]  # without the caller's prefix, fresh ids sort by age


def _description_key(id: str) -> str:
    """The key of a file's description."""
    return f"{FOLDER}{id}.json"


async def _read(store: Store, id: str) -> File | None:
    try:
        return File.model_validate_json((await store.get(_description_key(id))).body)
    except (NotFound, ValueError):  # a ValueError: it is not one that this server wrote
        return None


async def uploaded_file(id: str, facade: FacadeOf, caller: Key) -> File:
    """An uploaded file of the caller's. Raises 404."""
    id = full_id(caller, id, "file")
    file = await _read(facade.client.store, id)
    if file is None:
        raise HTTPException(404, f"no file has the id {id[:100]!r}; GET /v1/files lists the files")
    return file


async def lines_of(file: File, store: Store) -> bytes:
    """The bytes of an upload. Raises 404 when it was deleted meanwhile."""
    try:
        return (await store.get(f"{FOLDER}{file.id}.jsonl")).body
    except NotFound as error:
        raise HTTPException(404, f"the file {file.id!r} was deleted") from error


def full_id(caller: Key, id: str, kind: str) -> str:
    """The full id in the store of what a caller calls `id`. Raises 404 for what cannot be an id."""
    if not CHOSEN_ID.fullmatch(id):
        raise HTTPException(404, f"{id[:100]!r} is not a valid {kind} id")
    return caller.id(id)


@router.get("/files/{id}", responses=READ_ERRORS, summary="Get one file")
async def get_file(id: str, facade: FacadeOf, caller: Caller) -> File:
    output = await batch_output.find(full_id(caller, id, "file"), facade)
    if output is None:
        return await uploaded_file(id, facade, caller)
    return File(
        id=output.id,
        bytes=0,
        created_at=output.created_at,
        filename=f"{output.id}.jsonl",
        purpose="batch_output",
    )


@router.get(
    "/files/{id}/content",
    response_class=Response,
    responses={**READ_ERRORS, 200: file_response(JSONL, text="The lines.")},
    summary="Get the content of a file",
)
async def get_file_content(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    output = await batch_output.find(full_id(caller, id, "file"), facade)
    if output is not None:
        lines = batch_output.lines(output, facade.client.store, str(request.base_url))
        return StreamingResponse(lines, media_type=type_for(request, JSONL))
    file = await uploaded_file(id, facade, caller)
    return Response(await lines_of(file, facade.client.store), media_type=type_for(request, JSONL))


@router.delete("/files/{id}", responses=READ_ERRORS, summary="Delete an uploaded file")
async def delete_file(id: str, facade: FacadeOf, caller: Caller) -> Deleted:
    """Batches that were created from it go on."""
    if await batch_output.find(full_id(caller, id, "file"), facade) is not None:
        raise Rejected.of_field(
            "id", "belongs to an output file, which exists as long as its batch's results"
        )
    file = await uploaded_file(id, facade, caller)
    await facade.client.store.delete(_description_key(file.id))
    await facade.client.store.delete(f"{FOLDER}{file.id}.jsonl")
    return Deleted(id=file.id)
