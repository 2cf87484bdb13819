"""Parts of the OpenAPI document that FastAPI cannot derive: the three request bodies, and the error responses.

The routes read their bodies as bytes and `schemas` validates them, so that a refusal is the same however the
request arrived.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from producer.web.accept import OCTETS
from schemas.manifest import TASKS, Img2Img, Inpainting, Text2Img
from schemas.training import Training

_REFERENCE = "#/components/schemas/{model}"
BODIES = TASKS
MODELS: dict[str, type[BaseModel]] = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}

#: The groups of calls, in the order of the documentation page.
TAGS = [
    {"name": "Draw", "description": "Send a request and wait for its pictures."},
    {"name": "Jobs", "description": "Queue a request, follow it, get its pictures, cancel it."},
    {"name": "Batches", "description": "Queue a file of many requests, one per line."},
    {
        "name": "Trainings",
        "description": "Teach a model a new concept from a few pictures. A trainer does it: `dreamdrop trainer`.",
    },
    {"name": "OpenAI", "description": "The endpoints that OpenAI's client libraries call."},
    {
        "name": "A1111",
        "description": "The endpoints that programs for AUTOMATIC1111's web UI call. Lists of things that this server "
        "does not have, such as upscalers, are there too, and empty.",
    },
    {"name": "Events", "description": "For object stores that report new requests by a webhook."},
    {"name": "Health", "description": "For load balancers and for Prometheus."},
]
#: How a caller sends its key; each one is enough.
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key from `dreamdrop keys new`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
ID_PREFIXES = {"OpenAI": "openai_", "A1111": "a1111_"}
BINARY = {"type": "string", "format": "binary"}


class Problem(BaseModel):
    """An error with one message."""

    detail: str = Field(description="What is wrong, and what to do about it.")
    code: str = Field(
        "", description="The code of the failure, as in a result; left out where there is none."
    )
    id: str = Field("", description="The request's id; left out where there is none.")


def operation_id(route: APIRoute) -> str:
    """A call's name, from which generators make a function's name."""
    return ID_PREFIXES.get(str(route.tags[0]), "") + route.name if route.tags else route.name


def problem(text: str) -> dict[str, Any]:
    return {"description": text, "model": Problem}


def invalid(text: str) -> dict[str, Any]:
    """An error response that names the fields that are not valid, in FastAPI's own schema."""
    schema = {"$ref": _REFERENCE.format(model="HTTPValidationError")}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def file_response(*types: str, text: str = "The file.") -> dict[str, Any]:
    """A response that is a file of one of some types. Which is told by its Content-Type."""
    return {"description": text, "content": {name: {"schema": BINARY} for name in (*types, OCTETS)}}


_ERRORS: dict[int, dict[str, Any]] = {
    401: problem("No key, or an unknown one."),
    404: problem("No request has this id."),
    409: problem("The id belongs to another request, or the request was canceled."),
    410: problem("The request expired before it was started."),
    413: invalid("The body is larger than allowed."),
    422: invalid("A field is not valid; the message says what to do."),
    429: problem("Too many requests are waiting; `Retry-After` says when to try again."),
    503: problem("No worker is alive, or the store does not answer."),
    504: problem("Not finished in time; the work goes on, and `id` is its id."),
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint."""
    return {status: _ERRORS[status] for status in statuses}


def components() -> dict[str, Any]:
    """The JSON schemas of the three bodies and of a training, and what they refer to."""
    bodies: list[type[BaseModel]] = [*MODELS.values(), Training]
    _, schema = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas: dict[str, Any] = schema["$defs"]
    return schemas


def request_body(
    schema: dict[str, Any], *, content_type: str = "application/json", **examples: Any
) -> dict[str, Any]:
    """`openapi_extra` for a body that the route reads itself.

    Args:
        examples: the `example` or `examples` of the body.
    """
    content = {content_type: {"schema": schema, **examples}}
    return {"requestBody": {"required": True, "content": content}}


def training_body() -> dict[str, Any]:
    """`openapi_extra` for a training's manifest."""
    schema = {"$ref": _REFERENCE.format(model=Training.__name__)}
    example = {
        "name": "my-dog",
        "base": "sd21",
        "instance_prompt": "a photo of sks dog",
        "archive": "uploads/my-dog.zip",
        "steps": 400,
    }
    return request_body(schema, example=example)


def manifest_body(*tasks: str) -> dict[str, Any]:
    """`openapi_extra` for a manifest of one of these tasks, with examples that can be sent as they are."""
    refs = [{"$ref": _REFERENCE.format(model=MODELS[task].__name__)} for task in tasks]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    chosen = {name: example for name, example in examples().items() if example["value"]["task"] in tasks}
    return request_body(schema, examples=chosen)


@cache
def examples() -> dict[str, Any]:
    """Complete examples of each body, by name."""
    picture, mask = _pictures()
    base = {"seed": 5}
    return {
        "text": {
            "summary": "From a prompt",
            "value": {"task": "text2img", "prompt": "a red circle on a blue background"} | base,
        },
        "documented": {
            "summary": "All documented fields",
            "value": {
                "task": "text2img",
                "prompt": "a yellow star on a black background",
                "negative_prompt": "blue",
                "width": 128,
                "height": 128,
                "cfg_scale": 7,
                "steps": 20,
                "number_of_images": 2,
            }
            | base,
        },
        "redraw": {
            "summary": "From a picture",
            "value": {
                "task": "img2img",
                "prompt": "a yellow star on a blue background",
                "image": picture,
                "strength": 0.75,
            }
            | base,
        },
        "repaint": {
            "summary": "Part of a picture",
            "value": {
                "task": "inpainting",
                "prompt": "a green circle on a blue background",
                "image": picture,
                "mask_image": mask,
            }
            | base,
        },
    }


def _pictures() -> tuple[str, str]:
    """A red square on blue and a mask of its middle, as PNG in base64."""
    from PIL import Image

    def encoded(picture: Image.Image) -> str:
        out = io.BytesIO()
        picture.save(out, "PNG", optimize=True)
        return base64.b64encode(out.getvalue()).decode("ascii")

    picture = Image.new("RGB", (128, 128), (40, 80, 200))
    picture.paste((220, 40, 40), (40, 40, 88, 88))
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (24, 24, 104, 104))
    return encoded(picture), encoded(mask)
