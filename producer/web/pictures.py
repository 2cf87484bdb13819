"""Pictures that callers of other programs' endpoints send in: opened with care, made to fit, sent on as PNG.

Our own bodies go to the workers as they are. Other programs resize the picture to the size that was asked
for, turn masks round or keep them in an alpha channel; that is done here, before the request is queued.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from schemas.errors import Rejected, TooLarge

if TYPE_CHECKING:
    from schemas.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP")


def decoded(text: object, field: str, limits: Limits) -> bytes:
    """The bytes of a base64 text, bare or as a data URI. Raises `Rejected`."""
    if not isinstance(text, str) or not text:
        raise refused(field, "is no text; send a picture in base64")
    coded = text.partition(",")[2] if text[:5].lower() == "data:" else text
    if len(coded) * 3 // 4 > limits.max_body_bytes:
        raise TooLarge(field, len(coded) * 3 // 4, limits.max_body_bytes)
    try:
        return base64.b64decode("".join(coded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(field, "is not base64; send the bytes of a PNG, JPEG or WebP file in base64") from error


def opened(body: bytes, field: str, limits: Limits) -> Image.Image:
    """A picture, upright. Its size is judged by its header, before a pixel is decoded. Raises `Rejected`."""
    try:
        picture: Image.Image = Image.open(io.BytesIO(body), formats=FORMATS)
        if picture.width * picture.height > limits.max_input_pixels:
            raise refused(
                field,
                f"has {picture.width} x {picture.height} pixels; at most {limits.max_input_pixels:,} are allowed",
            )
        picture.load()
        return _plain(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise refused(field, "is no picture that can be read; send PNG, JPEG or WebP") from error
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # decoders fail in many ways, most of all over EXIF
        raise refused(field, "is damaged, cut off or far too large; send a whole file") from error


def _plain(picture: Image.Image) -> Image.Image:
    """The same pixels in a mode that every program knows: eight bits, with an alpha channel if it had one."""
    if picture.mode.startswith(("I", "F")):
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture
    return picture.convert("RGBA" if "A" in picture.mode or "transparency" in picture.info else "RGB")


def fitted(picture: Image.Image, width: int, height: int, *, crop: bool) -> Image.Image:
    """A picture in another size: its middle, or all of it, stretched."""
    if picture.size == (width, height):
        return picture
    if crop:
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def white_and_black(mask: Image.Image) -> Image.Image:
    """A mask in one channel; what is transparent in it is kept, so it is black."""
    if mask.mode == "RGBA":
        ground = Image.new("RGBA", mask.size, "black")
        mask = Image.alpha_composite(ground, mask)
    return mask.convert("L")


def turned_round(mask: Image.Image) -> Image.Image:
    """White for black."""
    return ImageOps.invert(mask.convert("L"))


def where_transparent(mask: Image.Image, field: str) -> Image.Image:
    """White where a mask is transparent. Raises `Rejected` for one without an alpha channel."""
    if mask.mode != "RGBA":
        raise refused(field, "has no alpha channel; make the part that is to be drawn anew transparent")
    return ImageOps.invert(mask.getchannel("A"))


def coded(picture: Image.Image) -> str:
    """As manifests carry it."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")


def refused(field: str, text: str) -> Rejected:
    return Rejected("invalid_image", f"{field} {text}", field=field)
