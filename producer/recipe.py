"""From a picture back to the request that drew it.

The picture's own JSON is used where it is there, else the text that A1111's web UI writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.pictures import PARAMETERS, RECIPE, recipe_texts
from schemas import infotext
from schemas.errors import Rejected
from schemas.manifest import Img2Img, Inpainting, Text2Img
from schemas.strictjson import path_of_infinity

_NOT_REPEATED = {"id", "metadata", "expires_at", "image", "mask_image", "number_of_images"}
_BODIES: dict[str, type[BaseModel]] = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}


@dataclass(frozen=True, slots=True)
class Replay:
    """A request, rebuilt from a picture."""

    manifest: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what the picture does not tell


def read_recipe(path: Path) -> Replay:
    """Rebuild a request from a picture.

    Raises:
        Rejected: the file is not a picture, or the picture holds no recipe.
    """
    texts = recipe_texts(path, repr(str(path)))
    if RECIPE in texts:
        return _request_of(_parsed(path, texts[RECIPE]))
    if texts.get(PARAMETERS, "").strip():
        return _request_of(infotext.read(texts[PARAMETERS]))
    raise Rejected(
        "invalid_image",
        f"{str(path)!r} holds no recipe; pictures lose it when a program saves them without their metadata",
    )


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("invalid_image", f"the recipe in {str(path)!r} is damaged; it is not JSON") from error
    if not isinstance(recipe, dict):
        raise Rejected("invalid_image", f"the recipe in {str(path)!r} is damaged; it is not a JSON object")
    if (where := path_of_infinity(recipe)) is not None:  # also NaN, which Python reads
        raise Rejected(
            "invalid_image", f"the recipe in {str(path)!r} is damaged; {where} is not a finite number"
        )
    return recipe


def _request_of(recipe: dict[str, Any]) -> Replay:
    """The fields of a recipe that a request has; one image, from its own seed."""
    task = recipe.get("task")
    body = _BODIES.get(task, Text2Img) if isinstance(task, str) else Text2Img
    fields = set(body.model_fields) - _NOT_REPEATED
    manifest = {k: v for k, v in recipe.items() if k in fields and v is not None}
    if not manifest.get("loras"):
        manifest.pop("loras", None)
    if task is None and "strength" in manifest:  # other programs do not tell the task
        return Replay(manifest, ["it may have started from an image; if so, give it with --image"])
    if body is Text2Img:
        manifest.pop("strength", None)
        return Replay(manifest)
    what = "--image and --mask" if body is Inpainting else "--image"
    return Replay(manifest, [f"the image that it started from is not in the picture; give it with {what}"])
