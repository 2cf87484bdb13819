"""OpenAI's files: what is uploaded for a batch, and what a batch answers.

An upload is two objects of the store, its bytes and then a small description; so this server may be restarted,
and another one knows it, too. A batch's answers are no objects: they are made of its results while they
are read.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from infra.stores.store import Store
from producer.requests import fresh_id
from producer.web.api_keys import Key
from producer.web.caller import Caller, FacadeOf
from producer.web.openai import batch_output
from producer.web.openai.batch_input import AT_ONCE
from producer.web.openai.errors import LOOKING, documented
from producer.web.openai.fields import refused
from producer.web.openai.images import form
from schemas.errors import NotFound
from schemas.layout import CHOSEN_ID, UPLOADS

router = APIRouter(prefix="/v1", tags=["OpenAI"])
FOLDER = f"{UPLOADS}openai/files/"
EXTRA = 1 << 20  # bytes of a form around its file
Order = Literal["asc", "desc"]


class File(BaseModel):
    """A file, as they describe it."""

    id: str
    object: str = "file"
    bytes: int = Field(description="0 for a batch's answers, which are made while they are read.")
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
    responses=documented(400, 401, 413, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": ["batch"]},
                        },
                    }
                }
            },
        }
    },
    summary="Upload the requests of a batch",
)
async def upload(request: Request, facade: FacadeOf, caller: Caller) -> File:
    most = facade.settings.limits.max_batch_bytes
    async with await form(request, most + EXTRA) as sent:
        for name in sent:
            if name not in ("file", "purpose"):
                raise refused(name[:60], "cannot be done here; files are kept until they are deleted")
        if sent.get("purpose") != "batch":
            raise refused("purpose", "should be 'batch'; files for anything else are not kept here")
        part = sent.get("file")
        if not isinstance(part, UploadFile):
            raise refused("file", "is missing; send the requests as a JSON Lines file")
        lines, name = await part.read(), part.filename or "batch.jsonl"
    file = File(
        id=caller.id(f"file-{fresh_id()}"),
        bytes=len(lines),
        created_at=int(time.time()),
        filename=name[:200],
        purpose="batch",
    )
    store = facade.client.store
    await store.put(f"{FOLDER}{file.id}.jsonl", lines, content_type="application/jsonl")
    await store.put(described(file.id), file.model_dump_json().encode(), content_type="application/json")
    return file


@router.get("/files", responses=LOOKING, summary="Uploaded files")
async def files(
    facade: FacadeOf,
    caller: Caller,
    purpose: Annotated[str | None, Query(description="Only those of this purpose.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
) -> Files:
    """Batches name their answers themselves; those are not in this list."""
    if purpose not in (None, "batch"):
        return Files(data=[])
    ids, more = await page(facade.client.store, FOLDER, caller, after=after, limit=limit, order=order)
    gate = asyncio.Semaphore(AT_ONCE)

    async def look(id: str) -> File | None:
        async with gate:
            return await _read(facade.client.store, id)

    found = [file for file in await asyncio.gather(*map(look, ids)) if file is not None]
    return Files(
        data=found, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=more
    )


async def page(
    store: Store, folder: str, caller: Key, *, after: str | None, limit: int, order: Order
) -> tuple[list[str], bool]:
    """Ids of one's own in a folder, by age, and whether there are more."""
    prefix = folder + (f"{caller.prefix}." if caller.prefix else "")
    ids = [i.key[len(folder) : -5] async for i in store.list(prefix) if i.key.endswith(".json")]
    ids.sort(key=_age, reverse=order == "desc")
    if after is not None:
        mark = _age(caller.id(after))
        ids = [id for id in ids if (_age(id) < mark if order == "desc" else _age(id) > mark)]
    return ids[:limit], len(ids) > limit


def _age(id: str) -> str:
    return id.rpartition(".")[2]  # fresh ids sort by age, whoever's they are


def described(id: str) -> str:
    """The key of a file's description."""
    return f"{FOLDER}{id}.json"


async def _read(store: Store, id: str) -> File | None:
    try:
        return File.model_validate_json((await store.get(described(id))).body)
    except NotFound:
        return None


async def known(id: str, facade: FacadeOf, caller: Key) -> File:
    """An uploaded file of the caller's. Raises 404."""
    id = theirs(caller, id, "file")
    file = await _read(facade.client.store, id)
    if file is None:
        raise HTTPException(404, f"there is no file {id[:100]!r}; GET /v1/files lists those that there are")
    return file


async def lines_of(file: File, store: Store) -> bytes:
    """What was uploaded. Raises 404 when it was deleted meanwhile."""
    try:
        return (await store.get(f"{FOLDER}{file.id}.jsonl")).body
    except NotFound as error:
        raise HTTPException(404, f"the file {file.id!r} was deleted") from error


def theirs(caller: Key, id: str, what: str) -> str:
    """What a caller calls an id, in the store. Raises 404 for what can be none."""
    if not CHOSEN_ID.fullmatch(id):
        raise HTTPException(404, f"{id[:100]!r} is no id of a {what}")
    return caller.id(id)


@router.get("/files/{id}", responses=LOOKING, summary="One file")
async def one(id: str, facade: FacadeOf, caller: Caller) -> File:
    found = await batch_output.find(theirs(caller, id, "file"), facade)
    if found is None:
        return await known(id, facade, caller)
    return File(
        id=found.id,
        bytes=0,
        created_at=found.created_at,
        filename=f"{found.id}.jsonl",
        purpose="batch_output",
    )


@router.get(
    "/files/{id}/content",
    response_class=Response,
    responses={**LOOKING, 200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
    summary="What is in a file",
)
async def content(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    found = await batch_output.find(theirs(caller, id, "file"), facade)
    if found is not None:
        lines = batch_output.lines(found, facade.client.store, str(request.base_url))
        return StreamingResponse(lines, media_type="application/jsonl")
    file = await known(id, facade, caller)
    return Response(await lines_of(file, facade.client.store), media_type="application/jsonl")


@router.delete("/files/{id}", responses=LOOKING, summary="Delete an upload")
async def delete(id: str, facade: FacadeOf, caller: Caller) -> Deleted:
    """Batches that were made of it go on."""
    if await batch_output.find(theirs(caller, id, "file"), facade) is not None:
        raise refused(
            "id", "names a batch's answers; they are made of its results, and stay as long as those"
        )
    file = await known(id, facade, caller)
    await facade.client.store.delete(described(file.id))
    await facade.client.store.delete(f"{FOLDER}{file.id}.jsonl")
    return Deleted(id=file.id)
