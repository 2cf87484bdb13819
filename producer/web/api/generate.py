"""The synchronous endpoints: one of the three bodies in, pictures out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from producer.web import responses
from producer.web.accept import FORMATS, JSON, quality
from producer.web.caller import Caller, FacadeOf, document, draw, preferences
from producer.web.openapi import BINARY, BODIES, errors, manifest_body
from schemas.errors import Rejected
from schemas.manifest import TASKS

router = APIRouter(tags=["Draw"])


class Queued(BaseModel):
    """A request that was queued instead of being waited for."""

    id: str
    status: str = Field(description="Always queued.")
    location: str = Field(description="The job's address: `GET` it until it has finished.")


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures; with `Accept: image/png`, the single picture as PNG.",
        "model": responses.Drawing,
        "content": {name: {"schema": BINARY} for name in FORMATS},
    },
    202: {
        "description": "Queued, with `Prefer: respond-async`; `Location` is the job's address.",
        "model": Queued,
    },
    **errors(401, 409, 410, 413, 422, 429, 503, 504),
}


async def _respond(request: Request, facade: FacadeOf, caller: Caller, task: str | None) -> Response:
    """Draw what the body asks for, and answer in the form that the headers ask for."""
    manifest = await document(request)
    if task is not None and manifest.setdefault("task", task) != task:
        raise Rejected.of_field("task", f"is {manifest['task']!r}, but this endpoint is /{task}/")
    image_format = _image_format(request)
    if image_format is not None:
        if manifest.get("number_of_images", 1) != 1:
            raise Rejected.of_field(
                "number_of_images", "must be 1 when a picture is accepted; accept application/json for more"
            )
        manifest.setdefault("output", {"format": image_format})
    if "respond-async" in preferences(request):
        ticket = await facade.submit(manifest, caller)
        location = responses.job_path(ticket.id)
        return JSONResponse(
            {"id": ticket.id, "status": "queued", "location": location},
            202,
            {"Location": location, "Preference-Applied": "respond-async"},
        )
    result = await draw(request, facade, caller, manifest)
    if preferences(request).get("return") == "minimal" and result.images:
        job = responses.job_of_result(result)
        return Response(
            job.model_dump_json(exclude_defaults=True),
            headers={"Preference-Applied": "return=minimal"},
            media_type="application/json",
        )
    images = await responses.pictures(facade.client.store, result)
    if image_format is not None:
        return Response(
            images[0],
            media_type=result.images[0].content_type,
            headers={
                "X-Seed": str(result.images[0].seed),
                "Content-Location": responses.image_path(result.id, 0),
            },
        )
    return Response(responses.drawing_json(result, images), media_type="application/json")


def _image_format(request: Request) -> str | None:
    """The image format that the caller prefers to JSON; None for JSON."""
    header = ",".join(request.headers.getlist("accept"))
    liked = {kind: quality(header, kind) for kind in FORMATS}
    best = max(FORMATS, key=lambda kind: liked[kind])  # the first of equals
    if liked[best][1] < 2:  # "*/*" asks for no picture
        return None
    return FORMATS[best] if liked[best][0] > quality(header, JSON)[0] else None


def _mount(path: str, task: str | None, summary: str) -> None:
    async def endpoint(request: Request, facade: FacadeOf, caller: Caller) -> Response:
        return await _respond(request, facade, caller, task)

    options: dict[str, Any] = {
        "methods": ["POST"],
        "response_model": responses.Drawing,
        "responses": RESPONSES,
        "openapi_extra": manifest_body(*([task] if task else BODIES)),
    }
    router.add_api_route(f"/{path}/", endpoint, summary=summary, name=path, **options)
    router.add_api_route(f"/{path}", endpoint, include_in_schema=False, **options)


_mount("generate", None, "Draw pictures; the fields decide the task")
for _task, _summary in zip(
    TASKS, ("Draw from a prompt", "Redraw a picture", "Repaint the white part of a mask"), strict=True
):
    _mount(_task, _task, _summary)
