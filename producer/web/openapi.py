"""The OpenAPI document's parts that FastAPI cannot see: the three bodies are read by `schemas`, in its own words."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from producer.web.responses import Drawing
from schemas.manifest import TASKS, Img2Img, Inpainting, Text2Img

_REFERENCE = "#/components/schemas/{model}"
BODIES = TASKS
MODELS: dict[str, type[BaseModel]] = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}

PROBLEM = {
    "type": "object",
    "title": "Problem",
    "required": ["detail"],
    "properties": {
        "detail": {"type": "string", "description": "What is wrong, and what to do."},
        "code": {"type": "string", "description": "As in the failure of a result."},
        "id": {"type": "string", "description": "The request, where there is one."},
    },
}
INVALID = {
    "type": "object",
    "title": "HTTPValidationError",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "title": "ValidationError",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                    "ctx": {"type": "object"},
                },
            },
        }
    },
}


def problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": PROBLEM}}}


def invalid(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": INVALID}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Pictures; with `Accept: image/png` the one picture itself.",
        "model": Drawing,
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    },
    202: {"description": "With `Prefer: respond-async`: it is queued, and `Location` says where to look."},
    401: problem("A key is needed."),
    409: problem("The id stands for another request, or somebody cancelled it."),
    410: problem("It expired before it was begun."),
    413: invalid("Larger than is allowed."),
    422: invalid("A field is wrong; the message says what to do."),
    429: problem("Too many wait already; `Retry-After` says when to ask again."),
    503: problem("No worker is alive, or the store does not answer."),
    504: problem("Not drawn in the given time; the work goes on, and `id` names it."),
}


def components() -> dict[str, Any]:
    """The JSON schemas of the three bodies and what they refer to."""
    _, schema = models_json_schema(
        [(model, "validation") for model in MODELS.values()], ref_template=_REFERENCE
    )
    found: dict[str, Any] = schema["$defs"]
    return found


def body_of(*tasks: str) -> dict[str, Any]:
    """A request body: one of these tasks, each with an example that draws something."""
    refs = [{"$ref": _REFERENCE.format(model=MODELS[task].__name__)} for task in tasks]
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": refs[0] if len(refs) == 1 else {"anyOf": refs},
                "examples": {
                    name: example for name, example in examples().items() if example["value"]["task"] in tasks
                },
            }
        },
    }


@cache
def examples() -> dict[str, Any]:
    """Worked examples of each body."""
    picture, mask = _pictures()
    base = {"steps": 20, "seed": 5}
    return {
        "words": {
            "summary": "From words",
            "value": {"task": "text2img", "prompt": "a red circle on a blue background"} | base,
        },
        "documented": {
            "summary": "Every documented field",
            "value": {
                "task": "text2img",
                "prompt": "a yellow star on a black background",
                "negative_prompt": "blue",
                "width": 128,
                "height": 128,
                "cfg_scale": 7,
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
            "summary": "A part of a picture",
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
    """A red square on blue, and a mask of its middle."""
    from PIL import Image

    def written(picture: Image.Image) -> str:
        out = io.BytesIO()
        picture.save(out, "PNG", optimize=True)
        return base64.b64encode(out.getvalue()).decode("ascii")

    picture = Image.new("RGB", (128, 128), (40, 80, 200))
    picture.paste((220, 40, 40), (40, 40, 88, 88))
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (24, 24, 104, 104))
    return written(picture), written(mask)
