"""The objects inside a request body: what a manifest says in more than one word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Where a request may hold a picture, or a list of them; `*` is any place of a list.
PICTURES = ("image", "mask_image", "controlnet.*.image", "ip_adapter.image")


class Part(BaseModel):
    """Strict and closed: unknown fields and wrong types are faults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LoraChoice(Part):
    """A LoRA that the worker knows, and its weight."""

    name: str = Field(min_length=1, max_length=200, description="Of the LoRA, as the worker knows it.")
    weight: float = Field(1.0, ge=-4, le=4, description="How strongly it changes the model.")


class Output(Part):
    """The image format."""

    format: Literal["png", "jpeg", "webp"] = Field("png", description="Of the image files.")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="JPEG and WebP only.")


def is_picture(path: str) -> bool:
    """Whether a dotted path, such as `controlnet.0.image`, is a place of a picture."""
    steps = ["*" if step.isdecimal() else step for step in path.split(".")]
    return ".".join(steps) in PICTURES or (steps[-1] == "*" and ".".join(steps[:-1]) in PICTURES)


def pictures_in(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a request holds where pictures belong, by dotted path, such as `controlnet.0.image`; perhaps no texts.

    Args:
        document: a request as JSON, which nobody has checked, or as a model's `model_dump`.
    """
    return dict(found for place in PICTURES for found in _found(document, place.split("."), ""))


def _found(value: Any, steps: Sequence[str], path: str) -> Iterator[tuple[str, Any]]:
    is_list = isinstance(value, list | tuple)
    if is_list and (not steps or steps[0] == "*"):
        for place, one in enumerate(value):
            yield from _found(one, steps[1:], f"{path}.{place}")
    elif not steps:
        yield path, value
    elif isinstance(value, Mapping) and value.get(steps[0]) is not None:
        yield from _found(value[steps[0]], steps[1:], f"{path}.{steps[0]}".lstrip("."))
