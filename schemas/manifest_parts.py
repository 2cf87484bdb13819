"""The objects inside a request body: what a manifest says in more than one word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from schemas.errors import Rejected

#: Where a request may hold a picture, or a list of them; `*` is any place of a list.
PICTURES = ("image", "mask_image", "controlnet.*.image", "ip_adapter.image")
MOST_PICTURES = 16  # in a list, as OpenAI's clients may send; models take fewer
_NEAR = 0.01  # pixels; a scale with a few decimals makes a size that is not quite whole


def without_default(schema: dict[str, Any]) -> None:
    """Many clients send a schema's default themselves. A number that is sent replaces the model's own."""
    schema.pop("default")


class Part(BaseModel):
    """Strict and closed: unknown fields and wrong types are faults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LoraChoice(Part):
    """A LoRA that the worker knows, and its weight."""

    name: str = Field(min_length=1, max_length=200, description="Of the LoRA, as the worker knows it.")
    weight: float = Field(1.0, ge=-4, le=4, description="How strongly it changes the model.")


class ControlNetUse(Part):
    """A ControlNet that the worker knows, and how it acts. A plan has this much of it."""

    name: str = Field(min_length=1, max_length=200, description="Of the ControlNet, as the worker knows it.")
    scale: float = Field(1.0, ge=0, le=2, description="How strongly it guides.")
    start: float = Field(0.0, ge=0, le=1, description="The share of the steps after which it begins to act.")
    end: float = Field(
        1.0,
        ge=0,
        le=1,
        description="The share of the steps after which it stops acting.",
        validate_default=True,
    )

    @field_validator("end")
    @classmethod
    def _after_start(cls, end: float, info: ValidationInfo) -> float:
        start = info.data.get("start", 0.0)
        if end <= start:
            raise ValueError(f"is {end:g}; it should be more than start, which is {start:g}")
        return end


class ControlNetChoice(ControlNetUse):
    """A ControlNet that the worker knows, and the picture that it reads."""

    image: str = Field(
        min_length=1,
        description="Base64 or a key, as in `image` of img2img: the finished control picture, such as edges or depths, "
        "in the size of the drawn one.",
    )


class IpAdapterUse(Part):
    """An IP-Adapter that the worker knows, and its strength. A plan has this much of it."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="May be left out where the worker knows one for the model.",
    )
    scale: float = Field(
        0.6,
        ge=0,
        le=2,
        description="How strongly the picture counts; at 1 the prompt has little effect.",
    )


class IpAdapterChoice(IpAdapterUse):
    """An IP-Adapter, and the picture that it reads."""

    image: str = Field(min_length=1, description="Base64 or a key, as in `image` of img2img; of any size.")


class Upscale(Part):
    """A second pass: the drawn picture is enlarged, and redrawn by the same model."""

    scale: float = Field(2.0, gt=1, le=4, description="Of width and height; enlarged by Lanczos' filter.")
    strength: float = Field(0.5, gt=0, le=1, description="How much to change the enlarged picture.")
    steps: int | None = Field(
        None,
        ge=1,
        description="Of which strength x steps are drawn. Default: the request's.",
        json_schema_extra=without_default,
    )

    def size(self, width: int, height: int, model: str, multiple: int) -> tuple[int, int]:
        """The size of the result, in pixels.

        Raises:
            Rejected: the model does not draw it; with the two nearest scales.
        """
        sides = [side * self.scale for side in (width, height)]
        whole = [round(side) for side in sides]
        if all(
            abs(side - near) <= _NEAR and near % multiple == 0
            for side, near in zip(sides, whole, strict=True)
        ):
            return whole[0], whole[1]
        common = math.gcd(width, height)  # a scale of k x multiple / common makes multiples of both sides
        below = math.floor(self.scale * common / multiple)
        near_scales = " or ".join(
            f"{k * multiple / common:.6g} ({width * k * multiple // common} x {height * k * multiple // common})"
            for k in (below, below + 1)
            if 1 < k * multiple / common <= 4
        )
        made = " x ".join(f"{side:g}" for side in sides)
        raise Rejected.of_field(
            "upscale.scale",
            f"is {self.scale:g}, which makes {made} of {width} x {height}; model {model!r} draws multiples of "
            f"{multiple}: {near_scales or 'begin with another size'}",
        )

    def drawn_steps(self, steps: int) -> int:
        """The steps of the second pass.

        Raises:
            Rejected: none is left.
        """
        drawn = int((self.steps or steps) * self.strength)
        if drawn < 1:
            text = (
                f"is {self.strength:g}, which leaves none of {self.steps or steps} steps; give more of either"
            )
            raise Rejected.of_field("upscale.strength", text)
        return drawn


def steps_to_draw(drawn: int, strength: float) -> int:
    """The fewest steps of which a strength draws this many: other programs give the number that is drawn."""
    steps = math.ceil(drawn / strength)
    return steps if int(steps * strength) >= drawn else steps + 1


class Refiner(Part):
    """A second model, which goes on where the first one stops."""

    model: str = Field(
        min_length=1,
        max_length=200,
        description="An SDXL refiner or another SDXL model, as the worker knows it.",
    )
    at: float = Field(0.8, gt=0, lt=1, description="The share of the denoising after which it goes on.")

    def check_steps(self, steps: int, strength: float | None) -> None:
        """Refuse where one of the models would have nothing to draw.

        Args:
            strength: of a request with a picture, which skips the beginning.

        Raises:
            Rejected: with what to do.
        """
        begins = 1 - (1.0 if strength is None else strength)
        for share, who in ((self.at - begins, "the model"), (1 - max(self.at, begins), "the refiner")):
            if share * steps < 1 - 1e-6:
                text = f"is {self.at:g}, which leaves {who} none of {steps} steps; choose another share, or more steps"
                raise Rejected.of_field("refiner.at", text)


class Output(Part):
    """The image format."""

    format: Literal["png", "jpeg", "webp"] = Field("png", description="Of the image files.")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="JPEG and WebP only.")


def _one_or_several(given: Any) -> Any:
    """What `image` may be, with messages that do not repeat a picture."""
    if isinstance(given, str):
        if not given:
            raise ValueError("is empty")
        return given
    if not isinstance(given, list | tuple):
        kind = {dict: "an object", bool: "true or false", int: "a number", float: "a number"}.get(
            type(given), "null"
        )
        raise ValueError(f"is {kind}; it should be a picture as text, or a list of them")
    if not 1 <= len(given) <= MOST_PICTURES:
        raise ValueError(f"is a list of {len(given)}; it should have 1 to {MOST_PICTURES} pictures")
    for place, one in enumerate(given):
        if not (isinstance(one, str) and one):
            raise ValueError(f"has no picture as text at place {place} of its list")
    return tuple(given)


#: A picture or several: base64, or keys of objects.
OneOrSeveral = Annotated[
    Annotated[str, Field(min_length=1)]
    | Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=MOST_PICTURES)
    ],
    BeforeValidator(_one_or_several),
]


def pictures_of(image: str | tuple[str, ...]) -> tuple[str, ...]:
    """The pictures of an `image` in their order."""
    return (image,) if isinstance(image, str) else image


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
