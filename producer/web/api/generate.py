"""The synchronous endpoints: one of the three documented bodies in, pictures out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from producer.web import responses
from producer.web.caller import Caller, FacadeOf, document, left, patience, preferred
from producer.web.openapi import BODIES, ERRORS, body_of
from schemas.errors import Rejected
from schemas.manifest import TASKS

router = APIRouter(tags=["Draw"])
FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}


async def draw(request: Request, facade: FacadeOf, caller: Caller, task: str | None) -> Response:
    """Draw what the body asks for, and answer in the form that the headers ask for."""
    asked = await document(request)
    if task is not None and asked.setdefault("task", task) != task:
        raise Rejected("invalid_manifest", f"task is {asked['task']!r}, but this is /{task}/", field="task")
    bare = _bare_format(request)
    if bare is not None:
        if asked.get("number_of_images", 1) != 1:
            raise Rejected(
                "invalid_manifest",
                "number_of_images must be 1 for an answer that is a picture; accept application/json for more",
                field="number_of_images",
            )
        asked.setdefault("output", {"format": bare})
    if "respond-async" in preferred(request):
        ticket = await facade.submit(asked, caller)
        place = responses.job_path(ticket.id)
        return JSONResponse(
            {"id": ticket.id, "status": "queued", "location": place},
            202,
            {"Location": place, "Preference-Applied": "respond-async"},
        )
    result = await facade.draw(asked, caller, wait=patience(request), gone=lambda: left(request))
    if preferred(request).get("return") == "minimal" and result.images:
        job = responses.finished(result)
        return Response(
            job.model_dump_json(exclude_defaults=True),
            headers={"Preference-Applied": "return=minimal"},
            media_type="application/json",
        )
    images = await responses.pictures(facade.client.store, result)
    if bare is not None:
        return Response(
            images[0],
            media_type=result.images[0].content_type,
            headers={"X-Seed": str(result.images[0].seed), "Content-Location": f"/jobs/{result.id}/images/0"},
        )
    return Response(responses.drawing(result, images), media_type="application/json")


def _bare_format(request: Request) -> str | None:
    """The picture format that is asked for instead of JSON."""
    accepted = [
        kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")
    ]
    if "application/json" in accepted or "*/*" in accepted:
        return None
    return next((FORMATS[kind] for kind in accepted if kind in FORMATS), None)


def _mount(path: str, task: str | None, summary: str) -> None:
    async def endpoint(request: Request, facade: FacadeOf, caller: Caller) -> Response:
        return await draw(request, facade, caller, task)

    facts: dict[str, Any] = {
        "methods": ["POST"],
        "response_model": responses.Drawing,
        "responses": ERRORS,
        "openapi_extra": {"requestBody": body_of(*([task] if task else BODIES))},
    }
    router.add_api_route(f"/{path}/", endpoint, summary=summary, name=path, **facts)
    router.add_api_route(f"/{path}", endpoint, include_in_schema=False, **facts)


_mount("generate", None, "Draw: which task it is, is told by the fields")
for _task, _summary in zip(
    TASKS, ("Draw from words", "Redraw a picture", "Repaint the white part of a mask"), strict=True
):
    _mount(_task, _task, _summary)
