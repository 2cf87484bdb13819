"""The endpoints of AUTOMATIC1111's web UI: its programs draw here.

Each is a thin shell: fields are translated in `a1111_fields`, the facade does the rest, and the answer has A1111's
shape. What cannot be done here is refused by name. Lists and settings are in `a1111_lists`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from producer.recipe import PARAMETERS, texts_in
from producer.web import pictures, responses
from producer.web.a1111 import fields
from producer.web.a1111.lists import chosen_model
from producer.web.caller import Caller, FacadeOf, document, left, patience
from producer.web.openapi import ERRORS, examples, invalid
from schemas import infotext
from schemas.errors import Rejected
from schemas.result import Note, Result

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
HIDDEN = ("init_images", "mask")  # not repeated in answers
DRAWING: dict[int | str, dict[str, Any]] = {
    code: ERRORS[code] for code in (401, 409, 410, 413, 422, 429, 503, 504)
}
READING: dict[int | str, dict[str, Any]] = {
    401: ERRORS[401],
    413: ERRORS[413],
    422: invalid("A field is wrong; the message says what to do."),
    503: ERRORS[503],
}


class Pictures(BaseModel):
    """What A1111 answers."""

    images: list[str] = Field(description="Base64.")
    parameters: dict[str, Any] = Field(description="The body that was sent, without its pictures.")
    info: str = Field(description="JSON as a text: all_seeds, all_prompts, infotexts; ours: id, warnings.")


class At(BaseModel):
    """Where the work stands, in A1111's words."""

    job: str = Field("", description="The id of the request that is being drawn.")
    job_count: int = 0
    job_no: int = 0
    job_timestamp: str = "0"
    sampling_step: int = 0
    sampling_steps: int = 0
    interrupted: bool = False
    skipped: bool = False
    stopping_generation: bool = False


class Progress(BaseModel):
    """How far the caller's own requests are that wait at this server."""

    progress: float = Field(0.0, ge=0, le=1)
    eta_relative: float = Field(0.0, description="Seconds.")
    state: At = At()
    current_image: str | None = Field(None, description="A small preview: base64 of a JPEG.")
    textinfo: str | None = None


class PngInfo(BaseModel):
    """What a picture says of itself."""

    info: str = Field(description="The `parameters` text.")
    items: dict[str, str] = Field(description="All texts in the picture, by keyword.")
    parameters: dict[str, str] = Field(description="The text, read.")


def _body(example: dict[str, Any], text: str) -> dict[str, Any]:
    schema = {"type": "object", "description": text}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }


_WORDS = {"prompt": "a red circle on a blue background", "steps": 20, "seed": 5, "width": 128, "height": 128}
_WORDS |= {"sampler_name": "Euler a", "batch_size": 1, "n_iter": 1}
_PICTURE = {
    **{k: v for k, v in _WORDS.items() if k != "prompt"},
    "prompt": "a yellow star on a blue background",
    "init_images": [examples()["redraw"]["value"]["image"]],
    "denoising_strength": 0.75,
}


@router.post(
    "/txt2img",
    response_model=Pictures,
    responses=DRAWING,
    openapi_extra=_body(_WORDS, "A1111's fields; see docs/clients.md for those that are refused."),
    summary="Draw from words",
)
async def txt2img(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(request, facade, caller, img2img=False)


@router.post(
    "/img2img",
    response_model=Pictures,
    responses=DRAWING,
    openapi_extra=_body(_PICTURE, "A1111's fields; with `mask`, its white part is repainted."),
    summary="Redraw a picture, or the white part of a mask",
)
async def img2img(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(request, facade, caller, img2img=True)


async def _draw(request: Request, facade: FacadeOf, caller: Caller, *, img2img: bool) -> Response:
    body = await document(request)
    asked = await asyncio.to_thread(
        fields.understood,
        body,
        img2img=img2img,
        model=chosen_model(request, caller),
        limits=facade.settings.limits,
    )
    result = await facade.draw(asked.manifest, caller, wait=patience(request), gone=lambda: left(request))
    if not result.images:
        raise responses.Undrawn(result)
    images = [] if body.get("send_images") is False else await responses.pictures(facade.client.store, result)
    told = Pictures(
        images=[],
        parameters={name: value for name, value in body.items() if name not in HIDDEN},
        info=json.dumps(_info(result, body, asked.notes), ensure_ascii=False),
    ).model_dump_json(exclude={"images"})
    sent = b",".join(b'"%b"' % base64.b64encode(image) for image in images)
    return Response(b'{"images":[%b],%b' % (sent, told.encode()[1:]), media_type="application/json")


def _info(result: Result, body: dict[str, Any], notes: list[Note]) -> dict[str, Any]:
    """What A1111 tells of the pictures; under `dreamdrop` what it has no words for."""
    recipe, count = result.parameters, len(result.images)
    prompt, negative = str(recipe.get("prompt") or ""), str(recipe.get("negative_prompt") or "")
    seeds = [image.seed for image in result.images]
    first = result.images[0]
    warnings = [note.model_dump(exclude_none=True) for note in (*notes, *result.warnings)]
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
        "width": first.width,
        "height": first.height,
        "sampler_name": recipe.get("scheduler"),
        "cfg_scale": recipe.get("cfg_scale"),
        "steps": recipe.get("steps"),
        "batch_size": body.get("batch_size") or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": recipe.get("model"),
        "sd_model_hash": "",
        "denoising_strength": recipe.get("strength"),
        "clip_skip": recipe.get("clip_skip") or 1,
        "index_of_first_image": 0,
        "styles": [],
        "infotexts": [
            infotext.write({**recipe, "seed": image.seed, "width": image.width, "height": image.height})
            for image in result.images
        ],
        "dreamdrop": {"id": result.id, "status": result.status, "warnings": warnings},
    }


@router.get(
    "/progress", responses={401: ERRORS[401], 503: ERRORS[503]}, summary="How far the caller's work is"
)
async def progress(
    facade: FacadeOf,
    caller: Caller,
    skip_current_image: bool = Query(False, description="Leave the preview out."),
) -> Progress:
    """Of the synchronous requests that this caller waits for at this server."""
    ids = facade.waits_of(caller)
    states = [state for state in await asyncio.gather(*map(facade.state, ids), return_exceptions=True)]
    told = [state.progress for state in states if not isinstance(state, BaseException) and state.progress]
    if not ids:
        return Progress()
    done = sum(min(1.0, one.steps_done / one.steps_total) for one in told if one.steps_total)
    if not told:
        return Progress(state=At(job_count=len(ids)), textinfo="waiting")
    first = told[0]
    preview = "" if skip_current_image else first.preview.partition(",")[2]
    return Progress(
        progress=min(1.0, done / len(ids)),
        eta_relative=max((one.eta or 0.0 for one in told), default=0.0),
        state=At(
            job=first.id,
            job_count=len(ids),
            sampling_step=first.steps_done,
            sampling_steps=first.steps_total,
        ),
        current_image=preview or None,
    )


@router.post(
    "/interrupt", responses={401: ERRORS[401], 503: ERRORS[503]}, summary="Cancel the caller's own work"
)
async def interrupt(facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """Every synchronous request that this caller waits for at this server ends as canceled: it answers 409."""
    await facade.interrupt(caller)
    return {}


@router.post("/skip", responses={401: ERRORS[401], 503: ERRORS[503]}, summary="The same as interrupt")
async def skip(facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """Images of a request are drawn side by side, so there is no current one to be skipped alone."""
    await facade.interrupt(caller)
    return {}


@router.post(
    "/png-info",
    response_model=PngInfo,
    responses=READING,
    openapi_extra=_body({"image": examples()["redraw"]["value"]["image"]}, "`image`: a picture in base64."),
    summary="The recipe in a picture",
)
async def png_info(request: Request, facade: FacadeOf, caller: Caller) -> PngInfo:
    body, limits = await document(request), facade.settings.limits
    if unknown := set(body) - {"image"}:
        name = min(unknown)
        raise Rejected("invalid_manifest", f"{name[:60]} is an unknown field; send `image`", field=name)
    raw = pictures.decoded(body.get("image"), "image", limits)

    def read() -> dict[str, str]:
        pictures.opened(raw, "image", limits)
        return texts_in(io.BytesIO(raw), "image")

    items = await asyncio.to_thread(read)
    text = items.get(PARAMETERS, "")
    return PngInfo(info=text, items=items, parameters=infotext.pairs(text) if text else {})
