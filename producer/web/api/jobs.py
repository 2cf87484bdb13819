"""Jobs: queue a request, get its state, watch it, get its pictures, cancel it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from infra.claims.kept_request import with_request
from producer import collect
from producer.errors import UnknownRequest
from producer.web import responses
from producer.web.accept import FORMATS, type_for
from producer.web.caller import Caller, FacadeOf, document, new_id, own_id, result_of
from producer.web.openapi import BODIES, errors, file_response, invalid, manifest_body, problem
from producer.web.responses import Job
from schemas.errors import Unavailable

router = APIRouter(tags=["Jobs"])
POLL = {True: 1.0, False: 0.2}  # seconds between two reads of a watched request's state: in a bucket, else
KEEPALIVE = 15.0  # seconds without news after which a comment is sent, so that proxies keep the stream open


class Jobs(BaseModel):
    """The queue and the latest results."""

    queued: list[str] = Field(description="Ids, the next one first.")
    processing: list[Job] = Field(description="Requests that workers hold.")
    latest: list[Job] = Field(description="Requests that have ended, the newest first.")
    over: int = Field(description="How many requests have ended, in all.")
    workers: int = Field(description="Workers that are alive.")


@router.get("/jobs", summary="List queued, processing and finished requests")
async def list_jobs(
    facade: FacadeOf,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=200, description="The most of each kind.")] = 20,
) -> Jobs:
    known = await facade.overview(caller)
    processing = [Job(id=id, status="processing", progress=p) for id, p in known.processing.items()]
    return Jobs(
        queued=[id for id in known.queued if caller.sees(id)][:limit],
        processing=processing[:limit],
        latest=[responses.job_of_result(result) for result in known.latest[:limit]],
        over=known.over,
        workers=len(await facade.workers()),
    )


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    responses=errors(401, 404, 409, 413, 422, 429, 503),
    openapi_extra=manifest_body(*BODIES),
    summary="Queue a request",
)
async def queue_job(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    ticket = await facade.submit(await document(request), caller)
    return _queued(ticket.id, 202)


@router.put(
    "/jobs/{id:path}",
    status_code=201,
    response_model=Job,
    responses={
        **errors(401, 404, 409, 413, 422, 429, 503),
        200: {"description": "The same request was queued before.", "model": Job},
    },
    openapi_extra=manifest_body(*BODIES),
    summary="Queue a request under an id; repeating it with the same body is safe",
)
async def put_job(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    manifest = await document(request)
    id = new_id(caller, id)
    known = await facade.client.is_known(id)
    ticket = await facade.submit(manifest, caller, id=id)
    if known:
        job = responses.job_of_state(await facade.state(ticket.id))
        return Response(_json(job), media_type="application/json")
    return _queued(ticket.id, 201)


def _queued(id: str, status: int) -> Response:
    job = Job(id=id, status="queued")
    return Response(_json(job), status, {"Location": responses.job_path(id)}, media_type="application/json")


@router.get(
    "/jobs/{id:path}/images/{index}",
    response_class=Response,
    responses={
        200: file_response(*FORMATS, text="The picture, in the format that the request asked for."),
        **errors(404),
        410: problem("The stored image was changed or removed."),
    },
    summary="Get one picture",
)
async def get_image(id: str, index: int, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    result = await result_of(own_id(caller, id), facade)
    stored = next((image for image in result.images if image.index == index), None)
    if stored is None:
        raise HTTPException(404, f"{result.id} has no image {index}; it has {len(result.images)}")
    headers = {"ETag": f'"{stored.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    headers["Vary"] = "Accept"
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    body = await collect.read_image(facade.client.store, stored)
    return Response(body, media_type=type_for(request, stored.content_type), headers=headers)


@router.get(
    "/jobs/{id:path}/request",
    response_class=Response,
    responses={200: {"description": "The manifest.", "content": {"application/json": {}}}, **errors(404)},
    summary="Get the manifest of a finished request, byte for byte",
)
async def get_request(id: str, facade: FacadeOf, caller: Caller) -> Response:
    result = await with_request(facade.client.store, await result_of(own_id(caller, id), facade))
    return Response(result.request.body(), media_type="application/json")


@router.get(
    "/jobs/{id:path}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events named `job`, each with the job as JSON, until it has finished.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **errors(404),
    },
    summary="Watch a request step by step, with previews",
)
async def watch_job(id: str, facade: FacadeOf, caller: Caller) -> StreamingResponse:
    id = own_id(caller, id)
    first = responses.job_of_state(await facade.state(id))  # an unknown id is 404, not an empty stream

    async def stream() -> AsyncIterator[bytes]:
        job, sent = first, None
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        while True:
            if job != sent:
                yield f"event: job\ndata: {_json(job)}\n\n".encode()
                sent, sent_at = job, loop.time()
            elif loop.time() - sent_at > KEEPALIVE:
                yield b": keep-alive\n\n"
                sent_at = loop.time()
            if job.over or facade.stopping:  # browsers reconnect by themselves
                return
            await asyncio.sleep(POLL[facade.client.store.is_remote])
            try:
                job = responses.job_of_state(await facade.state(id))
            except Unavailable:
                continue  # the next read may succeed
            except UnknownRequest:
                return  # it was removed; a caller that asks again gets 404

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@router.get("/jobs/{id:path}", responses=errors(401, 404), summary="Get the state of a request")
async def get_job(id: str, facade: FacadeOf, caller: Caller, images: bool = False) -> Job:
    """With `images=true`, the response of a finished job contains its pictures in base64."""
    state = await facade.state(own_id(caller, id))
    job = responses.job_of_state(state)
    if images and state.result is not None and state.result.images:
        bodies = await responses.pictures(facade.client.store, state.result)
        data = [base64.b64encode(body).decode("ascii") for body in bodies]
        return job.model_copy(update={"data": data})
    return job


@router.delete(
    "/jobs/{id:path}",
    responses={**errors(404), 422: invalid("The id is not valid.")},
    summary="Cancel a request that has not finished",
)
async def cancel_job(id: str, facade: FacadeOf, caller: Caller) -> Job:
    """If a worker finished the request first, its result stands and is returned."""
    return responses.job_of_state(await facade.client.cancel(own_id(caller, id)))


def _json(job: Job) -> str:
    return job.model_dump_json(exclude_defaults=True)
