"""The objects inside a request body: what a manifest says in more than one word."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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
