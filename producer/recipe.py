"""From a picture back to the request that drew it.

The picture's own JSON is used where it is there, else the recipe of another program, else the text that
A1111's web UI writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.recipes import PARAMETERS, RECIPE, recipe_texts
from schemas.errors import Rejected
from schemas.manifest import Img2Img, Inpainting, Text2Img, validate_manifest
from schemas.plan import exact_names
from schemas.text import foreign_recipes, infotext
from schemas.text.prompts import as_drawn, check_syntax
from schemas.text.strictjson import path_of_infinity

_GUIDED_BY = {"controlnet": "control pictures", "ip_adapter": "the pictures that it followed"}
_NOT_REPEATED = {"id", "metadata", "expires_at", "image", "mask_image", "number_of_images", *_GUIDED_BY}
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
        recipe = _parsed(path, texts[RECIPE])
        return _request_of(recipe | as_drawn(recipe))
    if (foreign := foreign_recipes.read(texts)) is not None:
        return _request_of(foreign)
    if texts.get(PARAMETERS, "").strip():
        return _request_of(infotext.read(texts[PARAMETERS]))
    raise Rejected(
        "invalid_image",
        f"{str(path)!r} holds no recipe; pictures lose it when a program saves them without their metadata",
    )


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
        json.dumps(recipe, ensure_ascii=False).encode()  # not with an unpaired surrogate
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
    recipe = {**recipe, **exact_names(recipe)}
    task = recipe.get("task")
    body = _BODIES.get(task, Text2Img) if isinstance(task, str) else Text2Img
    fields = set(body.model_fields) - _NOT_REPEATED
    manifest = {k: v for k, v in recipe.items() if k in fields and v is not None}
    if not manifest.get("loras"):
        manifest.pop("loras", None)
    notes: list[str] = []
    if recipe.get("cut"):
        notes.append("its prompts were too long for this kind of file; only their beginnings are there")
    if task is None and "strength" in manifest:  # other programs do not tell the task
        notes.append("it may have started from an image; if so, give it with --image")
    elif body is Text2Img:
        manifest.pop("strength", None)
    else:
        what = "--image and --mask" if body is Inpainting else "--image"
        notes.append(f"the image that it started from is not in the picture; give it with {what}")
    for guide, what in _GUIDED_BY.items():
        if recipe.get(guide):
            said = json.dumps(recipe[guide], ensure_ascii=False)[:500]
            notes.append(f"it was drawn with {guide} {said}; {what} are not in it: add the field with them")
    if fault := _fault(manifest, body):
        notes.append(f"as it stands a worker would refuse it: {fault}")
    return Replay(manifest, notes)


def _fault(manifest: dict[str, Any], body: type[BaseModel]) -> str:
    """What is wrong with a request apart from the pictures that it lacks, or an empty text."""
    lacking = {name: "..." for name in ("image", "mask_image") if name in body.model_fields}
    known = {k: v for k, v in manifest.items() if k in body.model_fields}  # text2img has no strength
    try:
        validate_manifest(known | lacking)
        for field in ("prompt", "negative_prompt"):
            check_syntax(str(known.get(field) or ""), field)
    except Rejected as error:
        return error.message
    return ""
