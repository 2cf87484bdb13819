"""OpenAI's image and model endpoints.

`fields` translates the bodies, `results` the results and `errors` the errors; files and batches have modules of
their own.
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
from producer.web.caller import Caller, FacadeOf, body, document, draw
from producer.web.openai import fields as openai_fields
from producer.web.openai.errors import READ_ERRORS, errors
from producer.web.openai.fields import Translation
from producer.web.openai.results import OpenAIPictures, response_of
from producer.web.openapi import request_body
from schemas.defaults import ModelDefaults, ModelState
from schemas.errors import Rejected
from schemas.manifest_parts import MOST_PICTURES
from schemas.text.strictjson import load_object

router = APIRouter(prefix="/v1", tags=["OpenAI"])
DRAW_ERRORS = errors(400, 401, 409, 410, 413, 429, 500, 503, 504)
#: Fields of a form whose values are JSON, not text.
JSON_FIELDS = {"n", "seed", "steps", "cfg_scale", "strength", "clip_skip", "strict", "output_compression"}
JSON_FIELDS |= {"stream", "partial_images", "metadata", "loras", "output"}
JSON_FIELDS |= {"controlnet", "ip_adapter", "upscale", "refiner"}


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int = Field(0, description="Always 0: not known.")
    owned_by: str = "dreamdrop"
    defaults: ModelDefaults = Field(
        ModelDefaults(),
        description="What fills the fields that a request leaves open; not a field of OpenAI's.",
    )
    state: ModelState | None = Field(
        None, description="How near it is to the worker that is nearest to it; not a field of OpenAI's."
    )


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


_EXAMPLE = {"prompt": "a red circle on a blue background", "n": 1, "size": "128x128", "seed": 5}
_FILE = {"type": "string", "format": "binary"}
_EDIT_FIELDS = {
    "image": {"anyOf": [_FILE, {"type": "array", "items": _FILE, "maxItems": MOST_PICTURES}]},
    "mask": {**_FILE, "description": "Its transparent part is repainted."},
    "prompt": {"type": "string", "example": "a yellow star on a blue background"},
    "n": {"type": "integer"},
    "size": {"type": "string", "example": "auto"},
    "seed": {"type": "integer", "example": 5},
    "steps": {"type": "integer", "description": "Default: the model's own, or 30 where its card has none."},
}


@router.post(
    "/images/generations",
    response_model=OpenAIPictures,
    responses=DRAW_ERRORS,
    openapi_extra=request_body(
        {"type": "object", "description": "OpenAI's fields, and any other field of a manifest."},
        example=_EXAMPLE,
    ),
    summary="Draw from a prompt",
)
async def generations(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    return await _draw(openai_fields.manifest_of(await document(request)), request, facade, caller)


@router.post(
    "/images/edits",
    response_model=OpenAIPictures,
    responses=DRAW_ERRORS,
    openapi_extra=request_body(
        {"type": "object", "required": ["image", "prompt"], "properties": _EDIT_FIELDS},
        content_type="multipart/form-data",
    ),
    summary="Redraw a picture, or repaint the transparent part of a mask",
)
async def edits(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    limits = facade.settings.limits
    async with await form(request, limits.max_body_bytes) as fields:
        files = _sent(fields.getlist("image") + fields.getlist("image[]"))
        masks = _sent(fields.getlist("mask"))
        if not 1 <= len(files) <= MOST_PICTURES:
            text = f"is sent {len(files)} times; send one picture, or up to {MOST_PICTURES} where a model takes several"
            raise Rejected.of_field("image", text)
        if len(masks) > 1:
            raise Rejected.of_field("mask", f"is sent {len(masks)} times; send one at most")
        images = [await _bytes(file, "image") for file in files]
        mask = await _bytes(masks[0], "mask") if masks else None
        values = {name: _value(name, fields) for name in fields if name not in ("image", "image[]", "mask")}
    translation = await asyncio.to_thread(openai_fields.manifest_of_edit, values, images, mask, limits)
    return await _draw(translation, request, facade, caller)


async def form(request: Request, limit: int) -> Any:
    """A multipart form of at most `limit` bytes. Raises `Rejected`, and 400 for a body that is not a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Rejected.of_field("the body", "should be multipart/form-data, as OpenAI's client sends files")
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # some codecs take hours
        raise Rejected.of_field("the body", "has another charset than UTF-8; leave the charset out")
    raw = await body(request, limit)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    return Request(request.scope, receive).form(max_files=20, max_fields=100)


def _sent(parts: list[UploadFile | str]) -> list[UploadFile | str]:
    """A form's parts without empty ones, which browsers and generated clients send for what is not filled in."""
    return [part for part in parts if (part.size if isinstance(part, UploadFile) else part)]


async def _bytes(part: UploadFile | str, name: str) -> bytes:
    if isinstance(part, str):
        raise Rejected.of_field(name, "is text; send it as a file")
    return await part.read()


def _value(name: str, fields: FormData) -> Any:
    """A field's value: parsed if it is JSON, else its text. Raises `Rejected`."""
    text = fields[name]
    if not isinstance(text, str) or len(fields.getlist(name)) > 1:
        raise Rejected.of_field(name[:60], "should be sent once, as text")
    if name in JSON_FIELDS and text:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text  # the manifest's validation refuses it, and says what it should be
        return load_object(b'{"%b":%b}' % (name.encode(), text.encode()))[name]  # as strict as a JSON body
    return text


async def _draw(translation: Translation, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    result = await draw(request, facade, caller, translation.manifest)
    if not result.images:
        raise responses.NoPictures(result)
    as_data = translation.response_format == "b64_json"
    images = await responses.pictures(facade.client.store, result) if as_data else None
    response = response_of(result, images, str(request.base_url))
    return Response(response.model_dump_json(exclude_none=True), media_type="application/json")


@router.get("/models", responses=READ_ERRORS, summary="List models")
async def list_models(facade: FacadeOf, caller: Caller) -> Models:
    """The nearest to a worker first; `state` says which must be downloaded, and which cannot be had."""
    known = await facade.client.models()
    return Models(data=[Model(id=m.name, defaults=m.defaults, state=m.state) for m in known])


@router.get("/models/{id:path}", responses=READ_ERRORS, summary="Get one model")
async def get_model(id: str, facade: FacadeOf, caller: Caller) -> Model:
    known = {model.name: model for model in await facade.client.models()}
    if id not in known:
        raise HTTPException(
            404, f"no model is named {id[:100]!r}; known models: {', '.join(known) or 'none yet'}"
        )
    return Model(id=id, defaults=known[id].defaults, state=known[id].state)
