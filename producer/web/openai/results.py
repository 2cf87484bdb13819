"""A result as the response of OpenAI's image endpoints."""

from __future__ import annotations

import base64
from datetime import datetime

from pydantic import BaseModel, Field

from producer.web.naming import notes_in_their_words
from producer.web.openai.errors import OPENAI_NAMES
from producer.web.responses import image_path
from schemas.result import Note, Result


class Picture(BaseModel):
    b64_json: str | None = None
    url: str | None = Field(
        None, description="An address of this server, which needs a key if the others do."
    )


class OpenAIPictures(BaseModel):
    """The response of `images.generate` and `images.edit`, with id, seeds and warnings besides OpenAI's fields."""

    created: int = Field(description="Seconds since 1970.")
    data: list[Picture]
    size: str
    output_format: str
    id: str = Field(description="The request's id: see `GET /jobs/{id}`.")
    seeds: list[int]
    warnings: list[Note] = []


def response_of(result: Result, images: list[bytes] | None, base_url: str) -> OpenAIPictures:
    """A result as OpenAI's response.

    Args:
        images: the pictures to include; None to send URLs.
        base_url: this server's address, as the caller knows it.
    """
    if images is None:
        base = base_url.rstrip("/")
        data = [Picture(url=base + image_path(result.id, image.index)) for image in result.images]
    else:
        data = [Picture(b64_json=base64.b64encode(image).decode("ascii")) for image in images]
    first = result.images[0]
    return OpenAIPictures(
        created=unix_seconds(result.finished_at) or 0,
        data=data,
        size=f"{first.width}x{first.height}",
        output_format=first.content_type.partition("/")[2],
        id=result.id,
        seeds=[image.seed for image in result.images],
        warnings=notes_in_their_words(result.warnings, OPENAI_NAMES),
    )


def unix_seconds(moment: str) -> int | None:
    """An ISO 8601 date and time in seconds since 1970; None for "", and for what is none."""
    try:
        return int(datetime.fromisoformat(moment).timestamp()) if moment else None
    except (ValueError, OverflowError):  # not written by a worker of ours
        return None
