"""Jobs: put a request, look how far it is, watch it, get its pictures, cancel it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from producer import collect
from producer.errors import UnknownRequest
from producer.web import responses
from producer.web.caller import Caller, FacadeOf, document, new_id, own_id
from producer.web.openapi import BODIES, ERRORS, body_of, invalid, problem
from producer.web.responses import Job
from schemas.errors import Unavailable
from schemas.result import Result

router = APIRouter(tags=["Jobs"])
LOOK = {True: 1.0, False: 0.2}  # seconds between two looks at a request that is watched: a bucket, else
SILENCE = 15.0  # seconds after which a comment keeps the stream alive
UNKNOWN = problem("No request has this id.")
REFUSED: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (401, 413, 422, 429, 503)}
REFUSED[404] = UNKNOWN


class Jobs(BaseModel):
    """The lane and the latest results at a glance."""

    queued: list[str]
    processing: list[Job]
    latest: list[Job]
    over: int
    workers: int


@router.get("/jobs", summary="What waits, what is being drawn, what ended last")
async def overview(
    facade: FacadeOf,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=200, description="Of each kind.")] = 20,
) -> Jobs:
    found = await facade.overview(caller)
    return Jobs(
        queued=[id for id in found.queued if caller.sees(id)][:limit],
        processing=[Job(id=id, status="processing", progress=p) for id, p in found.processing.items()][
            :limit
        ],
        latest=[responses.finished(result) for result in found.latest[:limit]],
        over=found.over,
        workers=found.workers,
    )


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    responses={**REFUSED, 409: ERRORS[409]},
    openapi_extra={"requestBody": body_of(*BODIES)},
    summary="Queue a request",
)
async def post(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    ticket = await facade.submit(await document(request), caller)
    return _queued(ticket.id, 202)


@router.put(
    "/jobs/{id:path}",
    status_code=201,
    response_model=Job,
    responses={**REFUSED, 200: {"description": "It was put before, with the same body."}, 409: ERRORS[409]},
    openapi_extra={"requestBody": body_of(*BODIES)},
    summary="Queue a request under an id: the same body again is the same request",
)
async def put(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    asked = await document(request)
    id = new_id(caller, id)
    known = await facade.client.is_known(id)
    ticket = await facade.submit(asked, caller, id=id)
    if known:
        return Response(_json(responses.job(await facade.state(ticket.id))), media_type="application/json")
    return _queued(ticket.id, 201)


def _queued(id: str, status: int) -> Response:
    job = Job(id=id, status="queued")
    return Response(_json(job), status, {"Location": responses.job_path(id)}, media_type="application/json")


@router.get(
    "/jobs/{id:path}/images/{index}",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        404: UNKNOWN,
        410: problem("The stored image was changed or removed."),
    },
    summary="One picture",
)
async def image(id: str, index: int, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    result = await result_of(own_id(caller, id), facade)
    found = next((image for image in result.images if image.index == index), None)
    if found is None:
        raise HTTPException(404, f"{result.id} has no image {index}; it has {len(result.images)}")
    headers = {"ETag": f'"{found.sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    body = await collect.read_image(facade.client.store, found)
    return Response(body, media_type=found.content_type, headers=headers)


@router.get(
    "/jobs/{id:path}/request",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}, 404: UNKNOWN},
    summary="The manifest of a request that is over, byte for byte",
)
async def manifest(id: str, facade: FacadeOf, caller: Caller) -> Response:
    result = await result_of(own_id(caller, id), facade)
    return Response(result.request.body(), media_type="application/json")


async def result_of(id: str, facade: FacadeOf) -> Result:
    """The result of a request that is over. Raises `UnknownRequest`, and 409 when it is not over."""
    state = await facade.state(id)
    if state.result is None:
        state = await facade.client.status(id)  # what is remembered is a moment old
    if state.result is None:
        raise HTTPException(409, f"{id} is {state.status}: come again when it is over")
    return state.result


@router.get(
    "/jobs/{id:path}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events named `job`, each with a job as JSON, until it is over.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        404: UNKNOWN,
    },
    summary="Watch a request: every step, with a small preview",
)
async def events(id: str, facade: FacadeOf, caller: Caller) -> StreamingResponse:
    id = own_id(caller, id)
    first = responses.job(await facade.state(id))  # an unknown id is 404, not an empty stream

    async def stream() -> AsyncIterator[bytes]:
        job, told = first, None
        loop = asyncio.get_running_loop()
        spoke = loop.time()
        while True:
            if job != told:
                yield f"event: job\ndata: {_json(job)}\n\n".encode()
                told, spoke = job, loop.time()
            elif loop.time() - spoke > SILENCE:
                yield b": still here\n\n"
                spoke = loop.time()
            if job.over or facade.leaving:  # a browser that watches asks again by itself
                return
            await asyncio.sleep(LOOK[facade.client.store.url.startswith("s3:")])
            try:
                job = responses.job(await facade.state(id))
            except Unavailable:
                continue  # told by silence; the next look may succeed
            except UnknownRequest:
                return  # somebody has removed it; whoever asks again is told so

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@router.get("/jobs/{id:path}", responses={404: UNKNOWN, 401: ERRORS[401]}, summary="How far a request is")
async def get(id: str, facade: FacadeOf, caller: Caller, images: bool = False) -> Job:
    """With `images=true`, a finished job's pictures are in the answer, in base64."""
    state = await facade.state(own_id(caller, id))
    job = responses.job(state)
    if images and state.result is not None and state.result.images:
        bodies = await responses.pictures(facade.client.store, state.result)
        data = [base64.b64encode(body).decode("ascii") for body in bodies]
        return job.model_copy(update={"data": data})
    return job


@router.delete(
    "/jobs/{id:path}",
    responses={404: UNKNOWN, 422: invalid("The id is none.")},
    summary="Cancel a request that is not over",
)
async def cancel(id: str, facade: FacadeOf, caller: Caller) -> Job:
    """Cancelling is winning a race: if a worker was first, its result stands, and is the answer."""
    return responses.job(await facade.client.cancel(own_id(caller, id)))


def _json(job: Job) -> str:
    return job.model_dump_json(exclude_defaults=True)
