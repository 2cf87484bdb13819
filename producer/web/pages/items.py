"""What the pages show of a result: its pictures as gallery items, its recipe, and a manifest that repeats it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any
from urllib.parse import quote

from producer.web.responses import STATUS, image_path
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.plan import exact_names
from schemas.result import Result
from schemas.text.prompts import as_drawn
from schemas.text.strictjson import load_object

STATUS_NAMES = {
    "processing": "drawing",
    "succeeded": "finished",
    "partial": "partly finished",
    "canceled": "cancelled",
}
#: Parameters that a batch's grid can show, in this order.
COMPARED = (
    "prompt", "negative_prompt", "seed", "cfg_scale", "steps", "scheduler", "model", "strength", "size",
    "clip_skip", "loras", "upscale", "refiner",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One picture, or one request that ended without pictures."""

    id: str
    name: str  # the last part of the id
    index: int
    status: str
    prompt: str
    seed: int | None = None
    url: str = ""  # of the image; "" without a picture
    width: int = 0  # pixels
    height: int = 0
    failure: str = ""  # message
    parameters: dict[str, str] = field(default_factory=dict)  # those of `COMPARED`

    @property
    def outcome(self) -> str:
        """How it ended, as one word for people."""
        return STATUS_NAMES.get("succeeded" if self.url else self.status, self.status).capitalize()

    @property
    def page(self) -> str:
        return picture_path(self.id) + (f"#image-{self.index}" if self.index else "")


def picture_path(id: str) -> str:
    return f"/pictures/{quote(id)}"


def items_of(result: Result) -> list[GalleryItem]:
    """A result's pictures; none for a batch's summary, whose rows have them."""
    if result.batch is not None:
        return []
    plan = result.parameters
    parameters = {name: text_of(plan[name]) for name in COMPARED if not _is_empty(plan.get(name))}
    common: dict[str, Any] = {
        "id": result.id,
        "name": result.id.rpartition("/")[2],
        "status": result.status,
        "prompt": str(plan.get("prompt") or ""),
        "failure": result.failure.message if result.failure else "",
    }
    if not result.images:
        common["prompt"] = common["prompt"] or _requested_prompt(result)
        return [GalleryItem(**common, index=0, parameters=parameters)]
    return [
        GalleryItem(
            **common,
            index=image.index,
            seed=image.seed,
            url=image_path(result.id, image.index),
            width=image.width,
            height=image.height,
            parameters=parameters | {"seed": str(image.seed), "size": f"{image.width} × {image.height}"},
        )
        for image in result.images
    ]


def _requested_prompt(result: Result) -> str:
    """The prompt of a request that ended before it had a plan."""
    with contextlib.suppress(Rejected, ValueError):
        return str(load_object(result.request.body()).get("prompt") or "")
    return ""


def _is_empty(value: object) -> bool:
    return value in (None, "", [], ())


def first_sentence(message: str) -> str:
    """The beginning of a message, without the lists and the advice that its own page shows."""
    return re.split(r"(?<=[^.])[.;] (?!did you mean)", message, maxsplit=1)[0]


def is_canary(result: Result) -> bool:
    """Whether `dreamdrop doctor` made it, to see whether requests are drawn."""
    return result.metadata.get("canary") is True and "canary" in result.id


def is_own_fault(result: Result) -> bool:
    """Whether the request cannot succeed as it stands."""
    failure = result.failure
    return failure is not None and not result.images and STATUS.get(failure.code, 422) in (413, 422)


def text_of(value: Any) -> str:
    """A parameter's value as text for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {text_of(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value))
    return str(value)


def duration(seconds: float) -> str:
    """A time for people; `static/live.js` writes it the same way."""
    return f"{seconds / 60:.0f} min" if seconds > 100 else f"{ceil(seconds)} s"


@dataclass
class Grid:
    """The finished rows of a batch."""

    items: Sequence[GalleryItem]

    @cached_property
    def pictures(self) -> list[GalleryItem]:
        return [item for item in self.items if item.url]

    @cached_property
    def failed(self) -> list[GalleryItem]:
        """One item for each row that failed, in part or as a whole."""
        return [item for item in self.items if item.failure and item.index == 0]

    @cached_property
    def finished(self) -> int:
        """How many rows."""
        return len({item.id for item in self.items})

    @cached_property
    def parameters(self) -> list[str]:
        """Those that a row has."""
        return [name for name in COMPARED if any(name in item.parameters for item in self.items)]

    @cached_property
    def differing(self) -> list[str]:
        """Those that are not the same in all pictures."""
        values = [item.parameters for item in self.pictures]
        return [name for name in COMPARED if len({each.get(name, "") for each in values}) > 1]


def recipe_table(plan: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    """The parameters of a recipe that have a value, except `hidden` ones."""
    table = {name: value for name, value in plan.items() if name not in hidden and not _is_empty(value)}
    if isinstance(output := table.get("output"), dict) and output.get("format") == "png":
        table["output"] = "png"  # its quality has no effect
    return table


def repeating_manifest(result: Result) -> dict[str, Any]:
    """A manifest that draws the same again: the request with the plan's parameters and seed.

    Raises:
        Rejected: the request was not a manifest, or only its beginning was kept.
    """
    if result.request.cut:
        raise Rejected("too_large", "only the beginning of this request was kept")
    manifest = load_object(result.request.body())
    for name in ("id", "custom_id", "expires_at"):
        manifest.pop(name, None)
    plan = result.parameters
    for name in (
        "model",
        "scheduler",
        "steps",
        "cfg_scale",
        "width",
        "height",
        "strength",
        "clip_skip",
        "upscale",
    ):
        if plan.get(name) is not None:
            manifest[name] = plan[name]
    manifest |= exact_names(plan) | as_drawn(plan)
    if isinstance(used := plan.get("ip_adapter"), dict) and isinstance(manifest.get("ip_adapter"), dict):
        manifest["ip_adapter"] |= {"name": used.get("name")}  # the request may have left it open
    if plan.get("seeds"):
        manifest["seed"] = plan["seeds"][0]
    return manifest


def can_repeat(result: Result) -> bool:
    """Whether a result has a valid `repeating_manifest`; one without a plan is checked."""
    if result.parameters:
        return not result.request.cut or result.request.key is not None
    try:
        validate_manifest(repeating_manifest(result))
    except Rejected:
        return False
    return True


def neighbours(latest: Sequence[Result], id: str) -> tuple[str, str]:
    """The pages of the next newer and the next older request; "" where there is none."""
    ids = [result.id for result in latest]
    if id not in ids:
        return "", ""
    at = ids.index(id)
    newer, older = ids[at - 1 : at], ids[at + 1 : at + 2]
    return (picture_path(newer[0]) if newer else ""), (picture_path(older[0]) if older else "")
