"""The endpoints of AUTOMATIC1111's web UI that draw, report progress and read recipes.

`fields` translates the body, the facade draws, and the response has A1111's shape. Unsupported fields are refused
by name. Lists and settings are in `lists`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from infra.pictures import decode_base64
from infra.recipes import PARAMETERS, RECIPE
from producer.web import pictures, responses
from producer.web.a1111 import fields
from producer.web.a1111.controlnet import without_pictures
from producer.web.a1111.lists import chosen_model
from producer.web.caller import Caller, FacadeOf, document, draw
from producer.web.naming import in_their_words, notes_in_their_words
from producer.web.openapi import errors, examples, request_body
from schemas.errors import Rejected
from schemas.result import Note, Result
from schemas.text import foreign_recipes, infotext

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
HIDDEN = ("init_images", "mask")  # not repeated in responses
DRAW_ERRORS = errors(401, 409, 410, 413, 422, 429, 503, 504)


class A1111Pictures(BaseModel):
    """A1111's response to a drawing request."""

    images: list[str] = Field(description="The pictures in base64.")
    parameters: dict[str, Any] = Field(description="The request body without its pictures.")
    info: str = Field(description="JSON in a string: all_seeds, all_prompts, infotexts and more.")


class ProgressState(BaseModel):
    """The `state` object of A1111's progress."""

    job: str = Field("", description="The id of the request in progress.")
    job_count: int = 0
    job_no: int = 0
    job_timestamp: str = "0"
    sampling_step: int = 0
    sampling_steps: int = 0
    interrupted: bool = False
    skipped: bool = False
    stopping_generation: bool = False


class A1111Progress(BaseModel):
    """The progress of the synchronous requests that the caller waits for at this server."""

    progress: float = Field(0.0, ge=0, le=1)
    eta_relative: float = Field(0.0, description="Remaining seconds.")
    state: ProgressState = ProgressState()
    current_image: str | None = Field(None, description="A small preview, as JPEG in base64.")
    textinfo: str | None = None


class PngInfo(BaseModel):
    """The recipe in a picture."""

    info: str = Field(description="The `parameters` text.")
    items: dict[str, str] = Field(description="All texts in the file, by keyword.")
    parameters: dict[str, str] = Field(description="The text, parsed.")


def _body(example: dict[str, Any], text: str) -> dict[str, Any]:
    return request_body({"type": "object", "description": text}, example=example)


_TXT2IMG = {
    "prompt": "a red circle on a blue background",
    "seed": 5,
    "width": 128,
    "height": 128,
}
_TXT2IMG |= {"sampler_name": "Euler a", "batch_size": 1, "n_iter": 1}
_IMG2IMG = {
    **{k: v for k, v in _TXT2IMG.items() if k != "prompt"},
    "prompt": "a yellow star on a blue background",
    "init_images": [examples()["redraw"]["value"]["image"]],
    "denoising_strength": 0.75,
}


@router.post(
    "/txt2img",
    response_model=A1111Pictures,
    responses=DRAW_ERRORS,
    openapi_extra=_body(_TXT2IMG, "A1111's fields; docs/clients.md lists those that are not supported."),
    summary="Draw from a prompt",
)
async def txt2img(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(request, facade, caller, img2img=False)


@router.post(
    "/img2img",
    response_model=A1111Pictures,
    responses=DRAW_ERRORS,
    openapi_extra=_body(_IMG2IMG, "A1111's fields; with `mask`, its white part is repainted."),
    summary="Redraw a picture, or repaint the white part of a mask",
)
async def img2img(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(request, facade, caller, img2img=True)


async def _draw(request: Request, facade: FacadeOf, caller: Caller, *, img2img: bool) -> Response:
    body = await document(request)
    translation = await asyncio.to_thread(
        fields.manifest_of,
        body,
        img2img=img2img,
        model=chosen_model(request, caller),
        limits=facade.settings.limits,
    )
    result = await draw(request, facade, caller, translation.manifest)
    if not result.images:
        raise responses.NoPictures(_in_a1111_words(result, body))
    images = [] if body.get("send_images") is False else await responses.pictures(facade.client.store, result)
    response = A1111Pictures(
        images=[],
        parameters={
            name: without_pictures(value) if name == "alwayson_scripts" else value
            for name, value in body.items()
            if name not in HIDDEN
        },
        info=json.dumps(_info(result, body, translation.notes), ensure_ascii=False),
    )
    return Response(responses.json_with_images(response, images), media_type="application/json")


def _in_a1111_words(result: Result, body: dict[str, Any]) -> Result:
    """A result without pictures, whose failure names the field that the caller sent."""
    failure = result.failure
    if failure is None:
        return result
    field, message = in_their_words(failure.field, failure.message, fields.names_in(body))
    return result.model_copy(
        update={"failure": failure.model_copy(update={"field": field, "message": message})}
    )


def _info(result: Result, body: dict[str, Any], notes: list[Note]) -> dict[str, Any]:
    """A1111's description of the pictures; `dreamdrop` holds what A1111 has no field for."""
    recipe, count = result.parameters, len(result.images)
    prompt, negative = str(recipe.get("prompt") or ""), str(recipe.get("negative_prompt") or "")
    seeds = [image.seed for image in result.images]
    first, upscale = result.images[0], recipe.get("upscale")
    scale = float(upscale["scale"]) if isinstance(upscale, dict) else 1.0
    width, height = round(first.width / scale), round(first.height / scale)  # of the first pass, as in A1111
    told = notes_in_their_words(result.warnings, fields.names_in(body))
    warnings = [note.model_dump(exclude_none=True) for note in (*notes, *told)]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": recipe.get("scheduler"),
        "cfg_scale": recipe.get("cfg_scale"),
        "steps": recipe.get("steps"),
        "batch_size": body.get("batch_size") or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": recipe.get("model"),
        "sd_model_hash": "",
        "denoising_strength": upscale["strength"] if isinstance(upscale, dict) else recipe.get("strength"),
        "clip_skip": recipe.get("clip_skip") or 1,
        "index_of_first_image": 0,
        "styles": [],
        "infotexts": [
            infotext.write({**recipe, "seed": image.seed, "width": width, "height": height})
            for image in result.images
        ],
        "dreamdrop": {"id": result.id, "status": result.status, "warnings": warnings},
    }


@router.get("/progress", responses=errors(401, 503), summary="Get the progress of the caller's requests")
async def progress(
    facade: FacadeOf,
    caller: Caller,
    skip_current_image: bool = Query(False, description="Omit the preview."),
) -> A1111Progress:
    """Covers the synchronous requests that this caller waits for at this server."""
    ids = facade.waits_of(caller)
    if not ids:
        return A1111Progress()
    states = await asyncio.gather(*map(facade.state, ids), return_exceptions=True)
    reports = [state.progress for state in states if not isinstance(state, BaseException) and state.progress]
    done = sum(min(1.0, one.steps_done / one.steps_total) for one in reports if one.steps_total)
    if not reports:
        return A1111Progress(state=ProgressState(job_count=len(ids)), textinfo="waiting")
    first = reports[0]
    preview = "" if skip_current_image else first.preview.partition(",")[2]
    return A1111Progress(
        progress=min(1.0, done / len(ids)),
        eta_relative=max((one.eta or 0.0 for one in reports), default=0.0),
        state=ProgressState(
            job=first.id,
            job_count=len(ids),
            sampling_step=first.steps_done,
            sampling_steps=first.steps_total,
        ),
        current_image=preview or None,
    )


@router.post("/interrupt", responses=errors(401, 503), summary="Cancel the caller's requests")
async def interrupt(facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """Cancels the synchronous requests that this caller waits for at this server; they answer 409."""
    await facade.interrupt(caller)
    return {}


@router.post("/skip", responses=errors(401, 503), summary="The same as interrupt")
async def skip(facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """The images of a request are drawn at the same time, so there is no current one to skip."""
    await facade.interrupt(caller)
    return {}


@router.post(
    "/png-info",
    response_model=PngInfo,
    responses=errors(401, 413, 422, 503),
    openapi_extra=_body({"image": examples()["redraw"]["value"]["image"]}, "`image`: a picture in base64."),
    summary="Read the recipe in a picture",
)
async def png_info(request: Request, facade: FacadeOf, caller: Caller) -> PngInfo:
    body, limits = await document(request), facade.settings.limits
    if unknown := set(body) - {"image"}:
        raise Rejected.of_field(min(unknown)[:60], "is an unknown field; send `image`")
    raw = decode_base64(body.get("image"), "image", limits)
    items = await asyncio.to_thread(pictures.recipe_texts, raw, "image", limits)
    foreign = foreign_recipes.read(items) if RECIPE not in items else None
    text = infotext.write(foreign, drawn_here=False) if foreign else items.get(PARAMETERS, "")
    return PngInfo(info=text, items=items, parameters=infotext.pairs(text) if text else {})
