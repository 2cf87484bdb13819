"""The recipe inside a picture: our own chunk, else the text that A1111's web UI writes and reads."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.errors import Rejected
from schemas.manifest import Img2Img, Inpainting, Text2Img

CHUNK = "dreamdrop"  # PNG text chunk with our JSON
PARAMETERS = "parameters"  # PNG text chunk with A1111's text
USER_COMMENT, EXIF_BLOCK = 0x9286, 0x8769  # where JPEG and WebP keep the same text
_UNICODE = b"UNICODE\0"
MAKER_NOTE, _OURS = 0x927C, b"dreamdrop\0"  # where they keep our JSON, and how it begins

_BODIES: dict[str, type[BaseModel]] = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest, and what is missing from it."""

    manifest: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def read_recipe(path: Path) -> Found:
    """Rebuild a request from a picture.

    Raises:
        Rejected: no picture, or none with a recipe.
    """
    texts = texts_in(path, repr(str(path)))
    if CHUNK in texts:
        return _ours(path, texts[CHUNK])
    if texts.get(PARAMETERS, "").strip():
        from schemas.infotext import read

        return _manifest(read(texts[PARAMETERS]))
    raise Rejected(
        "invalid_image",
        f"{str(path)!r} holds no recipe; pictures lose it when a program saves them without their metadata",
    )


def texts_in(source: Path | io.BytesIO, name: str) -> dict[str, str]:
    """The texts that a picture carries, by keyword. Raises `Rejected`, with the name that it goes by."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as picture:
            picture.load()  # chunks may stand behind the pixels
            texts = {
                k: str(v) for k, v in picture.info.items() if k in (CHUNK, PARAMETERS) and isinstance(v, str)
            }
            exif = picture.getexif().get_ifd(EXIF_BLOCK)
    except UnidentifiedImageError as error:
        raise Rejected("invalid_image", f"{name} is not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise Rejected("invalid_image", f"cannot read the picture {name}: {why}") from error
    comment = exif.get(USER_COMMENT)  # of any type: a stranger wrote it
    if PARAMETERS not in texts and comment and isinstance(comment, (bytes, str)):
        texts[PARAMETERS] = _user_comment(comment)
    note = exif.get(MAKER_NOTE)
    if CHUNK not in texts and isinstance(note, bytes) and note.startswith(_OURS):
        texts[CHUNK] = note[len(_OURS) :].decode("utf-8", "replace")
    return texts


def _user_comment(comment: bytes | str) -> str:
    """EXIF's UserComment: eight bytes of character code, then the text."""
    if isinstance(comment, str):
        return comment
    if not comment.startswith(_UNICODE):
        return comment[8:].decode("utf-8", "replace")
    text = comment[len(_UNICODE) :]
    big = text[::2].count(0) >= text[1::2].count(0)  # a byte order mark is rare; the last line is ASCII
    return text.decode("utf-16-be" if big else "utf-16-le", "replace")


def _ours(path: Path, text: str) -> Found:
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise Rejected("invalid_image", f"the recipe in {str(path)!r} is damaged; it is not JSON") from error
    if not isinstance(recipe, dict):
        raise Rejected("invalid_image", f"the recipe in {str(path)!r} is damaged; it is no JSON object")
    return _manifest(recipe)


def _manifest(recipe: dict[str, Any]) -> Found:
    """The fields of a recipe that a request has; one image, from its own seed."""
    task = recipe.get("task")
    body = _BODIES.get(task, Text2Img) if isinstance(task, str) else Text2Img
    fields = set(body.model_fields) - {
        "id",
        "metadata",
        "expires_at",
        "image",
        "mask_image",
        "number_of_images",
    }
    manifest = {k: v for k, v in recipe.items() if k in fields and v is not None}
    if not manifest.get("loras"):
        manifest.pop("loras", None)
    if task is None and "strength" in manifest:  # other programs do not tell the task
        return Found(manifest, ["it may have started from an image; if so, give it with --image"])
    if body is Text2Img:
        manifest.pop("strength", None)
        return Found(manifest)
    what = "--image and --mask" if body is Inpainting else "--image"
    return Found(manifest, [f"the image that it started from is not in the picture; give it with {what}"])
