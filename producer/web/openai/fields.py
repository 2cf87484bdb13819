"""What the bodies of OpenAI's image endpoints mean as manifests.

Their fields are few; ours travel beside them (`extra_body` in their client): seed, steps, cfg_scale,
negative_prompt, scheduler and all others. What no manifest knows is refused, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.web import pictures
from schemas.errors import Rejected

if TYPE_CHECKING:
    from PIL.Image import Image

    from schemas.limits import Limits

_READ = {"n", "size", "response_format", "output_format", "output_compression", "background"}
_READ |= {"stream", "partial_images"}
IDLE = {"user", "quality", "style", "moderation", "input_fidelity"}  # wishes that no model here understands
_OURS_BY_THEIRS = {
    "task": "",
    "image": "",
    "mask_image": "",
    "number_of_images": "n",
    "width": "size",
    "height": "size",
}
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
WAYS = ("b64_json", "url")


@dataclass(frozen=True, slots=True)
class Asked:
    """A body of theirs, understood."""

    manifest: dict[str, Any]
    way: str  # how pictures are sent: b64_json or url
    size: tuple[int, int] | None  # None: the model's, or the picture's own


def understood(body: Mapping[str, Any]) -> Asked:
    """Translate a body but for its pictures. Raises `Rejected`."""
    for ours, theirs in _OURS_BY_THEIRS.items():
        if ours in body:
            hint = f"; send `{theirs}`" if theirs else ""
            raise refused(ours, f"is no field of this endpoint{hint}")
    if body.get("background") not in (None, "auto", "opaque"):
        raise refused(
            "background", f"is {_shown(body['background'])}; pictures are opaque here: leave it out"
        )
    for name in ("stream", "partial_images"):
        if body.get(name):
            raise refused(name, "cannot be done here; leave it out, or watch GET /jobs/{id}/events")
    way = body.get("response_format") or "b64_json"
    if way not in WAYS:
        raise refused("response_format", f"is {_shown(way)}; it should be b64_json or url")
    manifest = {k: v for k, v in body.items() if k not in _READ | IDLE and v is not None}
    if body.get("n") is not None:
        manifest["number_of_images"] = body["n"]
    manifest |= _output(body)
    return Asked({"task": "text2img", **manifest}, way, _size(body.get("size")))


def words(body: Mapping[str, Any]) -> Asked:
    """A body that draws from words alone."""
    asked = understood(body)
    if asked.size is not None:
        asked.manifest.update(width=asked.size[0], height=asked.size[1])
    return asked


def edit(body: Mapping[str, Any], image: bytes, mask: bytes | None, limits: Limits) -> Asked:
    """A body that redraws a picture, or the part of it where a mask is transparent. Decodes pictures."""
    asked = understood(body)
    picture = _sized(pictures.opened(image, "image", limits), asked.size, "image", limits)
    asked.manifest.update(task="img2img", image=pictures.coded(picture))
    if mask is not None:
        white = pictures.where_transparent(pictures.opened(mask, "mask", limits), "mask")
        white = _sized(white, picture.size, "mask", limits)
        asked.manifest.update(task="inpainting", mask_image=pictures.coded(white))
    return asked


def _sized(picture: Image, size: tuple[int, int] | None, field: str, limits: Limits) -> Image:
    """A picture in another size of the same shape."""
    if size is None or size == picture.size:
        return picture
    if not (min(size) >= 8 and max(size) <= limits.max_side):
        raise refused("size", f"should have sides from 8 to {limits.max_side} pixels")
    if abs(size[0] * picture.height - size[1] * picture.width) > max(picture.size):  # a pixel by rounding
        shape = f"{picture.width}x{picture.height}"
        raise refused(field, f"is {shape}, which is another shape than {size[0]}x{size[1]}; crop it first")
    return pictures.fitted(picture, *size, crop=False)


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    form, quality = body.get("output_format"), body.get("output_compression")
    if form is None and quality is None:
        return {}
    if "output" in body:
        raise refused("output", "and output_format say the same; send one of them")
    found = {"format": form or "png"}
    return {"output": found if quality is None else {**found, "quality": quality}}


def _size(size: Any) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise refused("size", f"is {_shown(size)}; it should be a text such as '512x768', or 'auto'")
    return int(found[1]), int(found[2])


def _shown(value: Any) -> str:
    return repr(value)[:60]


def refused(field: str, text: str) -> Rejected:
    return Rejected("invalid_manifest", f"{field} {text}", field=field)
