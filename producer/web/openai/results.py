"""A result as OpenAI's image endpoints tell it."""

from __future__ import annotations

import base64
from datetime import datetime

from pydantic import BaseModel, Field

from producer.web import responses
from schemas.result import Note, Result


class Picture(BaseModel):
    b64_json: str | None = None
    url: str | None = Field(None, description="Of this server; asks for a key where the others do.")


class Pictures(BaseModel):
    """What their `images.generate` and `images.edit` return; id, seeds and warnings are ours."""

    created: int = Field(description="Seconds since 1970.")
    data: list[Picture]
    size: str
    output_format: str
    id: str = Field(description="Names the result: see `GET /jobs/{id}`.")
    seeds: list[int]
    warnings: list[Note] = []


def answered(result: Result, images: list[bytes] | None, base: str) -> Pictures:
    """A result as they tell it.

    Args:
        images: to be sent along; None for addresses.
        base: this server's address, as the caller knows it.
    """
    if images is None:
        data = [Picture(url=base.rstrip("/") + image.url) for image in responses.finished(result).images]
    else:
        data = [Picture(b64_json=base64.b64encode(one).decode("ascii")) for one in images]
    first = result.images[0]
    return Pictures(
        created=seconds(result.finished_at) or 0,
        data=data,
        size=f"{first.width}x{first.height}",
        output_format=first.content_type.partition("/")[2],
        id=result.id,
        seeds=[image.seed for image in result.images],
        warnings=list(result.warnings),
    )


def seconds(moment: str) -> int | None:
    """An ISO 8601 moment in seconds since 1970."""
    return int(datetime.fromisoformat(moment).timestamp()) if moment else None
