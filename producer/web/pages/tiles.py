"""A picture as a tile of a page, and what can be said of its recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any
from urllib.parse import quote

from producer.web.responses import job_path
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.result import Result
from schemas.strictjson import load_object

#: What a grid compares, in this order.
COMPARED = (
    "prompt",
    "negative_prompt",
    "seed",
    "cfg_scale",
    "steps",
    "scheduler",
    "model",
    "strength",
    "size",
    "clip_skip",
    "loras",
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture, or one request that ended without any."""

    id: str
    name: str  # the last part of the id
    index: int
    status: str
    prompt: str
    seed: int | None = None
    url: str = ""  # of the bytes; "" where there is no picture
    width: int = 0  # pixels
    height: int = 0
    why: str = ""  # it failed
    facts: dict[str, str] = field(default_factory=dict)  # what a grid compares

    @property
    def page(self) -> str:
        return picture_path(self.id) + (f"#image-{self.index}" if self.index else "")


def picture_path(id: str) -> str:
    return f"/pictures/{quote(id)}"


def tiles(result: Result) -> list[Tile]:
    """A result's pictures; a batch's summary has none, its rows have."""
    if result.batch is not None:
        return []
    plan, prompt = result.parameters, str(result.parameters.get("prompt") or "")
    why = result.failure.message if result.failure else ""
    common: dict[str, Any] = {"id": result.id, "name": result.id.rpartition("/")[2], "status": result.status}
    if not result.images:
        return [Tile(**common, index=0, prompt=prompt or _asked(result), why=why, facts=_facts(plan))]
    return [
        Tile(
            **common,
            index=image.index,
            prompt=prompt,
            seed=image.seed,
            url=f"{job_path(result.id)}/images/{image.index}",
            width=image.width,
            height=image.height,
            why=why,
            facts=_facts(plan) | {"seed": str(image.seed), "size": f"{image.width} × {image.height}"},
        )
        for image in result.images
    ]


def _asked(result: Result) -> str:
    """The prompt of a request that never came to a plan."""
    with contextlib.suppress(Rejected, ValueError):
        return str(load_object(result.request.body()).get("prompt") or "")
    return ""


def _facts(plan: dict[str, Any]) -> dict[str, str]:
    facts = {name: said(plan[name]) for name in COMPARED if plan.get(name) not in (None, "", [], ())}
    return facts


def said(value: Any) -> str:
    """A value of a recipe, for people."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {said(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value))
    return str(value)


def duration(seconds: float) -> str:
    """How long, for people; `static/live.js` says the same."""
    return f"{seconds / 60:.0f} min" if seconds > 100 else f"{ceil(seconds)} s"


def differing(shown: Iterable[Tile]) -> list[str]:
    """The parameters in which some of these pictures differ."""
    all_facts = [tile.facts for tile in shown if tile.url]
    return [name for name in COMPARED if len({facts.get(name, "") for facts in all_facts}) > 1]


def manifest(result: Result) -> dict[str, Any]:
    """A request that draws the same again when it is dropped: as it was asked for, with every lot drawn.

    Raises:
        Rejected: it was none, or only its beginning was kept.
    """
    if result.request.cut:
        raise Rejected("too_large", "only the beginning of this request was kept")
    document = load_object(result.request.body())
    for name in ("id", "custom_id", "expires_at"):
        document.pop(name, None)
    plan = result.parameters
    for name in ("model", "scheduler", "steps", "cfg_scale", "width", "height", "strength", "clip_skip"):
        if plan.get(name) is not None:
            document[name] = plan[name]
    if plan.get("seeds"):
        document["seed"] = plan["seeds"][0]
    return document


def can_be_drawn_again(result: Result) -> bool:
    """Whether its manifest is at hand and understood; one that was cancelled early never came to a plan."""
    if result.parameters:
        return not result.request.cut
    try:
        validate_manifest(manifest(result))
    except Rejected:
        return False
    return True


def neighbours(latest: Sequence[Result], id: str) -> tuple[str, str]:
    """The pages of the next newer and the next older pictures; "" where there are none."""
    ids = [result.id for result in latest]
    if id not in ids:
        return "", ""
    at = ids.index(id)
    newer, older = ids[at - 1 : at], ids[at + 1 : at + 2]
    return (picture_path(newer[0]) if newer else ""), (picture_path(older[0]) if older else "")
