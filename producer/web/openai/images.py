"""OpenAI's image endpoints: programs that were written for them draw here.

Bodies are translated in `openai_fields`, errors in `openai_errors`; files and batches have modules of their own.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile

from producer.web import responses
from producer.web.caller import Caller, FacadeOf, body, document, left, patience
from producer.web.openai import fields as openai_fields
from producer.web.openai.errors import LOOKING, documented
from producer.web.openai.fields import Asked, refused
from producer.web.openai.results import Pictures, answered
from schemas.strictjson import load_object

router = APIRouter(prefix="/v1", tags=["OpenAI"])
DRAWING = documented(400, 401, 409, 410, 413, 429, 500, 503, 504)
#: Fields of a form that are no texts.
VALUES = {"n", "seed", "steps", "cfg_scale", "strength", "clip_skip", "strict", "output_compression"}
VALUES |= {"stream", "partial_images", "metadata", "loras", "output"}


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int = Field(0, description="Not known here.")
    owned_by: str = "dreamdrop"


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


_EXAMPLE = {"prompt": "a red circle on a blue background", "n": 1, "size": "128x128", "seed": 5, "steps": 20}


@router.post(
    "/images/generations",
    response_model=Pictures,
    responses=DRAWING,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "description": "Their fields, and any of a manifest's."},
                    "example": _EXAMPLE,
                }
            },
        }
    },
    summary="Draw from words",
)
async def generations(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(openai_fields.words(await document(request)), request, facade, caller)


@router.post(
    "/images/edits",
    response_model=Pictures,
    responses=DRAWING,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image", "prompt"],
                        "properties": {
                            "image": {"type": "string", "format": "binary"},
                            "mask": {
                                "type": "string",
                                "format": "binary",
                                "description": "Its transparent part is drawn anew.",
                            },
                            "prompt": {"type": "string", "example": "a yellow star on a blue background"},
                            "n": {"type": "integer"},
                            "size": {"type": "string", "example": "auto"},
                            "seed": {"type": "integer", "example": 5},
                            "steps": {"type": "integer", "example": 20},
                        },
                    }
                }
            },
        }
    },
    summary="Redraw a picture, or the transparent part of a mask",
)
async def edits(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    limits = facade.settings.limits
    async with await form(request, limits.max_body_bytes) as sent:
        files = sent.getlist("image") + sent.getlist("image[]")
        masks = sent.getlist("mask")
        if len(files) != 1:
            raise refused("image", f"is there {len(files)} times; send one picture")
        if len(masks) > 1:
            raise refused("mask", f"is there {len(masks)} times; send one at most")
        image = await _bytes(files[0], "image")
        mask = await _bytes(masks[0], "mask") if masks else None
        fields = {name: _value(name, sent) for name in sent if name not in ("image", "image[]", "mask")}
    asked = await asyncio.to_thread(openai_fields.edit, fields, image, mask, limits)
    return await _draw(asked, request, facade, caller)


async def form(request: Request, most: int) -> Any:
    """A multipart body, read no further than allowed. Raises `Rejected`, and 400 for what is none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise refused("the body", "should be multipart/form-data, as OpenAI's client sends files")
    _, said = parse_options_header(request.headers["content-type"])
    if said.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # Python has codecs that take hours
        raise refused("the body", "names another charset than UTF-8; leave the charset out")
    whole = await body(request, most)

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": whole, "more_body": False}

    return Request(request.scope, again).form(max_files=20, max_fields=100)


async def _bytes(part: UploadFile | str, name: str) -> bytes:
    if isinstance(part, str):
        raise refused(name, "is a text; send it as a file")
    return await part.read()


def _value(name: str, sent: FormData) -> Any:
    """A field of a form, read as JSON where it is no text."""
    text = sent[name]
    if not isinstance(text, str) or len(sent.getlist(name)) > 1:
        raise refused(name[:60], "should be one text")
    if name in VALUES:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text  # refused later, by what it should be
        return load_object(b'{"%b":%b}' % (name.encode(), text.encode()))[name]  # as strict as a JSON body
    return text


async def _draw(asked: Asked, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    result = await facade.draw(asked.manifest, caller, wait=patience(request), gone=lambda: left(request))
    if not result.images:
        raise responses.Undrawn(result)
    images = await responses.pictures(facade.client.store, result) if asked.way == "b64_json" else None
    told = answered(result, images, str(request.base_url))
    return Response(told.model_dump_json(exclude_none=True), media_type="application/json")


@router.get("/models", responses=LOOKING, summary="Models")
async def models(facade: FacadeOf, caller: Caller) -> Models:
    return Models(data=[Model(id=model.name) for model in await facade.client.models()])


@router.get("/models/{id:path}", responses=LOOKING, summary="One model")
async def model(id: str, facade: FacadeOf, caller: Caller) -> Model:
    known = [model.name for model in await facade.client.models()]
    if id not in known:
        raise HTTPException(
            404, f"no model is named {id[:100]!r}; there are {', '.join(known) or 'none yet'}"
        )
    return Model(id=id)
