"""Translates the bodies of OpenAI's image endpoints into manifests.

OpenAI has few fields. A manifest's other fields may be sent beside them (`extra_body` in OpenAI's client): seed,
steps, cfg_scale, negative_prompt, scheduler and so on. Unknown fields are refused, as everywhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.web import pictures
from schemas.errors import Rejected

if TYPE_CHECKING:
    from PIL.Image import Image

    from schemas.limits import Limits

_READ = {"n", "size", "response_format", "output_format", "output_compression", "background"}
_READ |= {"stream", "partial_images"}
IGNORED = {"user", "quality", "style", "moderation", "input_fidelity"}  # no model here has such settings
#: Fields of a manifest that have another name or another form here; "" for none.
_RENAMED = {
    "task": "",
    "image": "",
    "mask_image": "",
    "number_of_images": "n",
    "width": "size",
    "height": "size",
}
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)
_OUTPUT_FORMATS = ("png", "jpeg", "webp")
RESPONSE_FORMATS = ("b64_json", "url")


@dataclass(frozen=True, slots=True)
class Translation:
    """A body of OpenAI's as a manifest."""

    manifest: dict[str, Any]
    response_format: str  # b64_json or url
    size: tuple[int, int] | None  # pixels; None: the model's, or the picture's own


def manifest_of(body: Mapping[str, Any]) -> Translation:
    """Translate a body that draws from a prompt. Raises `Rejected`."""
    translation = _translate(body)
    if translation.size is not None:
        translation.manifest.update(width=translation.size[0], height=translation.size[1])
    return translation


def manifest_of_edit(
    body: Mapping[str, Any], images: Sequence[bytes], mask: bytes | None, limits: Limits
) -> Translation:
    """Translate an edit: redraw pictures, or the part of one where the mask is transparent. Raises `Rejected`.

    It decodes pictures, so call it in a thread.

    Args:
        images: of several, the first one has the size of the result, and the others are passed on as they are.
    """
    translation = _translate(body)
    first, *others = images
    if others and mask is not None:
        raise Rejected.of_field("mask", f"is sent with {len(images)} pictures; send it with one")
    picture = _resized(pictures.decode_picture(first, "image", limits), translation.size, "image", limits)
    texts = [pictures.png_base64(picture), *(base64.b64encode(other).decode("ascii") for other in others)]
    translation.manifest.update(task="img2img", image=texts if others else texts[0])
    if mask is not None:
        white = pictures.mask_of_alpha(pictures.decode_picture(mask, "mask", limits), "mask")
        white = _resized(white, picture.size, "mask", limits)
        translation.manifest.update(task="inpainting", mask_image=pictures.png_base64(white))
    return translation


def _translate(body: Mapping[str, Any]) -> Translation:
    """All fields but the pictures; one that is empty is one that was not sent."""
    body = {name: value for name, value in body.items() if value != "" or name == "prompt"}
    for ours, theirs in _RENAMED.items():
        if ours in body:
            hint = f"; send `{theirs}`" if theirs else ""
            raise Rejected.of_field(ours, f"is not a field of this endpoint{hint}")
    if body.get("background") not in (None, "auto", "opaque"):
        shown = _shown(body["background"])
        raise Rejected.of_field("background", f"is {shown}; only opaque pictures are supported: leave it out")
    for name in ("stream", "partial_images"):
        if body.get(name):
            raise Rejected.of_field(name, "is not supported; leave it out, or watch GET /jobs/{id}/events")
    response_format = body.get("response_format") or "b64_json"
    if response_format not in RESPONSE_FORMATS:
        raise Rejected.of_field(
            "response_format", f"is {_shown(response_format)}; it should be b64_json or url"
        )
    manifest = {k: v for k, v in body.items() if k not in _READ | IGNORED and v is not None}
    if body.get("n") is not None:
        manifest["number_of_images"] = body["n"]
    manifest |= _output(body)
    return Translation({"task": "text2img", **manifest}, response_format, _size(body.get("size")))


def _resized(picture: Image, size: tuple[int, int] | None, field: str, limits: Limits) -> Image:
    """A picture in another size of the same proportions."""
    if size is None or size == picture.size:
        return picture
    if not (min(size) >= 8 and max(size) <= limits.max_side):
        raise Rejected.of_field("size", f"should have sides from 8 to {limits.max_side} pixels")
    if abs(size[0] * picture.height - size[1] * picture.width) > max(picture.size):  # a pixel for rounding
        shape = f"{picture.width}x{picture.height}"
        raise Rejected.of_field(
            field, f"is {shape}, which has other proportions than {size[0]}x{size[1]}; crop it first"
        )
    return pictures.resize(picture, *size, crop=False)


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    form, quality = body.get("output_format"), body.get("output_compression")
    if form is None and quality is None:
        return {}
    if "output" in body:
        raise Rejected.of_field("output", "and output_format mean the same; send one of them")
    if form is not None and form not in _OUTPUT_FORMATS:
        raise Rejected.of_field(
            "output_format", f"is {_shown(form)}; it should be {', '.join(_OUTPUT_FORMATS)}"
        )
    output = {"format": form or "png"}
    if quality is None:
        return {"output": output}
    if isinstance(quality, bool) or not isinstance(quality, int) or not 0 <= quality <= 100:
        raise Rejected.of_field("output_compression", f"is {_shown(quality)}; it should be from 0 to 100")
    return {"output": {**output, "quality": max(1, quality)}}  # a manifest's begins at 1


def _size(size: Any) -> tuple[int, int] | None:
    text = size.strip().lower().replace("×", "x") if isinstance(size, str) else ""
    if size is None or text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Rejected.of_field(
            "size", f"is {_shown(size)}; it should be a string such as '512x768', or 'auto'"
        )
    return int(match[1]), int(match[2])


def _shown(value: Any) -> str:
    return repr(value)[:60]
