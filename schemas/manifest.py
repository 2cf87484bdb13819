"""The three request bodies of the wire contract, and the messages for what is wrong with one.

The shape of a document says which body it is (`mask_image`: inpainting, else `image`: img2img, else
text2img), unless it has an explicit `task`.
"""

from __future__ import annotations

import contextlib
import difflib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from schemas.defaults import CFG_SCALE, STEPS
from schemas.errors import Rejected, TooLarge
from schemas.layout import CHOSEN_ID
from schemas.limits import Limits
from schemas.manifest_limits import check_limits, shown_value
from schemas.manifest_parts import (
    MOST_PICTURES,
    PICTURES,
    ControlNetChoice,
    IpAdapterChoice,
    LoraChoice,
    OneOrSeveral,
    Output,
    Part,
    Refiner,
    Upscale,
    pictures_of,
    without_default,
)
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from collections.abc import Mapping

TASKS = ("text2img", "img2img", "inpainting")
DEFAULT_LIMITS = Limits()
_TASK = "Which kind of request it is. Default: what its pictures say."
_MAX_SEED = 2**63 - 1
_CUT = 60  # characters of a name or a value that a message shows
_WITH_PICTURES = {place.partition(".")[0] for place in PICTURES}
_FAULTS = 50  # of a document that are examined; four are reported


_UPSCALE: Any = Field(
    None, description="A second pass: enlarge the picture, and redraw it with the same model."
)
_REFINER: Any = Field(None, description="A second model, which draws the last part of the steps.")


class _Request(Part):
    """The fields that all three bodies share."""

    prompt: str = Field(
        min_length=1, description="What to draw.", examples=["a red circle on a blue background"]
    )
    negative_prompt: str | None = Field(None, description="What to avoid.")
    cfg_scale: float = Field(
        CFG_SCALE,
        ge=0,
        description="Guidance scale: how closely to follow the prompt; 1 or below is without guidance. Default: the "
        "model's own, or 7 where its card has none.",
        json_schema_extra=without_default,
    )
    steps: int = Field(
        STEPS,
        ge=1,
        description="Denoising steps. Default: the model's own, or 30 where its card has none.",
        json_schema_extra=without_default,
    )
    number_of_images: int = Field(1, ge=1, description="Image k uses seed + k.")
    seed: int | None = Field(
        None, ge=-1, le=_MAX_SEED, description="null or -1: a random seed; the result has it."
    )

    id: str | None = Field(None, description="Names the result; letters, digits, '.', '_', '-', at most 100.")
    model: str | None = Field(None, max_length=200, description="A model that the worker knows.")
    scheduler: str | None = Field(
        None,
        max_length=100,
        description="A diffusers scheduler, by its class or community name. Left out: the model's.",
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="How much to change `image`; default 0.8, inpainting 1."
    )
    clip_skip: int | None = Field(None, ge=1, le=12, description="1: none; 2: skip the last layer; ...")
    loras: tuple[LoraChoice, ...] = Field((), strict=False, description="LoRAs to apply, each once.")
    controlnet: tuple[ControlNetChoice, ...] = Field(
        (), strict=False, description="ControlNets that guide the drawing, each by a picture."
    )
    ip_adapter: IpAdapterChoice | None = Field(
        None, description="A picture whose style and content guide the drawing."
    )
    output: Output = Output()
    metadata: dict[str, Any] = Field(default_factory=dict, description="Opaque; repeated in the result.")
    strict: bool = Field(
        False, description="Fail where otherwise a warning would say what was changed or ignored."
    )
    expires_at: datetime | None = Field(
        None, strict=False, description="ISO 8601 with an offset; work does not begin after it."
    )

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty; say what to draw")
        return prompt

    @field_validator("id")
    @classmethod
    def _valid_id(cls, chosen: str | None) -> str | None:
        if chosen is not None and not CHOSEN_ID.fullmatch(chosen):
            raise ValueError(
                "may contain only letters, digits, '.', '_' and '-', must begin with a letter or digit, and may have "
                "at most 100 characters"
            )
        return chosen

    @field_validator("loras")
    @classmethod
    def _each_once(cls, loras: tuple[LoraChoice, ...]) -> tuple[LoraChoice, ...]:
        names = [lora.name for lora in loras]
        twice = next((name for name in names if names.count(name) > 1), None) if len(names) < 1000 else None
        if twice is not None:
            raise ValueError(f"names {twice[:_CUT]!r} twice; give each LoRA once, with one weight")
        return loras

    @field_validator("expires_at")
    @classmethod
    def _has_offset(cls, moment: datetime | None) -> datetime | None:
        if moment is not None and moment.tzinfo is None:
            raise ValueError("needs a time zone, such as 2030-01-31T12:00:00Z")
        return moment

    def chosen(self, name: str) -> Any:
        """A field's value if the request says it; None if it leaves the field open, for the model's card to fill."""
        return getattr(self, name) if name in self.model_fields_set else None

    @property
    def pictures(self) -> tuple[str, ...]:
        """What `image` holds or names, in its order; () for text2img."""
        return pictures_of(getattr(self, "image", ()))

    @property
    def drawn_seed(self) -> int | None:
        """The seed, with -1 read as "none given"."""
        return None if self.seed in (None, -1) else self.seed


class Text2Img(_Request):
    """Draw from a prompt alone."""

    task: Literal["text2img"] = Field("text2img", description=_TASK)
    width: int | None = Field(
        None, ge=8, multiple_of=8, description="Pixels; default the model's native width."
    )
    height: int | None = Field(
        None, ge=8, multiple_of=8, description="Pixels; default the model's native height."
    )
    upscale: Upscale | None = _UPSCALE
    refiner: Refiner | None = _REFINER


class Img2Img(_Request):
    """Redraw a picture. The result has the first picture's size, rounded down to multiples of 8."""

    task: Literal["img2img"] = Field("img2img", description=_TASK)
    image: OneOrSeveral = Field(
        description="Base64, bare or as a data URI; or a key that the worker may read. For a model that edits several "
        f"pictures a list of them, at most {MOST_PICTURES}."
    )
    upscale: Upscale | None = _UPSCALE
    refiner: Refiner | None = _REFINER


class Inpainting(_Request):
    """Redraw the white part of a mask; everything else stays as it is."""

    task: Literal["inpainting"] = Field("inpainting", description=_TASK)
    image: str = Field(
        min_length=1, description="Base64, bare or as a data URI; or a key that the worker may read."
    )
    mask_image: str = Field(min_length=1, description="The same; white is repainted, black is kept.")

    @field_validator("image", "mask_image", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        if isinstance(given, list):
            raise ValueError(f"is a list of {len(given)}; inpainting repaints one picture: give it as text")
        return given


Manifest = Text2Img | Img2Img | Inpainting
_WHY_NEEDED = {
    "prompt": "; say what to draw",
    "image": "; img2img and inpainting (mask_image) start from a picture",
    "mask_image": "; inpainting repaints the white part of it",
}
_NOT_ITS_OWN = {
    "width": "is not a field of a request with a picture; leave it out: the result has the picture's size",
    "height": "is not a field of a request with a picture; leave it out: the result has the picture's size",
    "image": "is not a field of text2img; leave it out, or use img2img",
    "mask_image": "is not a field of {task}; leave it out, or use inpainting",
    "upscale": "is not a field of inpainting, which keeps every pixel outside the mask; enlarge its result by img2img",
    "refiner": "is not a field of inpainting; leave it out, or send the result to the other model by img2img",
}
_BODIES: dict[str, type[Text2Img] | type[Img2Img] | type[Inpainting]] = {
    "text2img": Text2Img,
    "img2img": Img2Img,
    "inpainting": Inpainting,
}


def parse_manifest(body: bytes, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Read one request document.

    Raises:
        Rejected: with the field, the fault and what to do; `invalid_json` with line and column.
    """
    if len(body) > limits.max_body_bytes:
        raise TooLarge("the request", len(body), limits.max_body_bytes)
    return validate_manifest(load_object(body), limits)


def validate_manifest(document: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Check one parsed request document. Raises `Rejected` as `parse_manifest` does."""
    task = document.get("task")
    if task is None:
        task = "inpainting" if "mask_image" in document else "img2img" if "image" in document else "text2img"
    if not isinstance(task, str) or task not in _BODIES:
        raise Rejected.of_field("task", f"is {shown_value(task)}; it should be one of {', '.join(TASKS)}")
    try:
        manifest = _BODIES[task].model_validate(dict(document))
    except ValidationError as error:
        raise rejection(error, _BODIES[task]) from error
    check_limits(manifest, limits)
    return manifest


def chosen_id(body: bytes) -> str | None:
    """The valid `id` of a document that may have other faults; None when it has none."""
    with contextlib.suppress(Rejected):
        chosen = load_object(body).get("id")
        if isinstance(chosen, str) and CHOSEN_ID.fullmatch(chosen):
            return chosen
    return None


def rejection(error: ValidationError, body: type[BaseModel]) -> Rejected:
    """The first fault, followed by the others, so that a client can correct all of them at once."""
    errors = error.errors(include_url=False)[:_FAULTS]
    faults = [(".".join(str(part)[:_CUT] for part in e["loc"]), _sentence(e, body)) for e in errors]
    # Unknown fields first: a mistyped name explains the missing field.
    faults.sort(key=lambda f: not f[1].startswith(("is an unknown field", "is not a field")))
    field, first = faults[0]
    more = "; ".join(f"{name} {text}" for name, text in faults[1:4])
    return Rejected.of_field(field, first + (f"; also: {more}" if more else ""))


def _sentence(fault: Any, body: type[BaseModel]) -> str:
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    name = str(fault["loc"][-1])[:_CUT]
    if kind == "extra_forbidden":
        if name in _NOT_ITS_OWN and len(fault["loc"]) == 1:
            return _NOT_ITS_OWN[name].format(task=body.model_fields["task"].default)
        known = _fields_at(body, fault["loc"][:-1])
        near = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(known))}"
        return f"is an unknown field; {hint}"
    if kind == "missing":
        return f"is missing{_WHY_NEEDED.get(name, '')}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_too_short":
        return "is empty; say what to draw" if name == "prompt" else "is empty"
    if kind == "multiple_of":
        size, below = int(given), int(given) // 8 * 8
        hint = f"such as {below} or {below + 8}" if below >= 8 else "at least 8"
        return f"is {size}; sizes are multiples of 8, {hint}"
    if kind == "finite_number":
        return "is not a finite number"
    shown = shown_value(given)
    if fault["loc"][0] in _WITH_PICTURES and isinstance(given, str | list | dict):
        shown = {str: "a text", list: "a list", dict: "an object"}[type(given)]  # not a part of a picture
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        has = _fields_at(body, fault["loc"]) if kind != "dict_type" else []
        return f"is {shown}; it should be an object {{...}}" + (f" with {', '.join(has)}" if has else "")
    if kind in ("tuple_type", "list_type"):
        return f"is {shown}; it should be a list [...]"
    if kind.startswith("datetime"):
        return f"is {shown}; it should be a date and time, such as 2030-01-31T12:00:00Z"
    message = str(fault["msg"]).removeprefix("Input should be ").removeprefix("Input should ")
    return (
        f"is {shown}; it should be {message}" if not str(fault["msg"]).startswith("String") else fault["msg"]
    )


def _fields_at(body: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The names of the fields of what stands at a path."""
    for step in path:
        annotation = body.model_fields[step].annotation if step in body.model_fields else None
        parts = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        body = next((one for one in parts if issubclass(one, BaseModel)), body)
    return list(body.model_fields)


def has_expired(manifest: Manifest) -> bool:
    """Whether the manifest's `expires_at` has passed, by this machine's clock."""
    return manifest.expires_at is not None and manifest.expires_at <= datetime.now(UTC)
