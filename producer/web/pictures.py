"""Pictures that other programs' clients send: decoded, brought to the size asked for, encoded as PNG.

Our own bodies go to the workers as they are. Other programs resize the picture to the size that was asked
for, invert masks or keep them in an alpha channel; that is done here, before the request is queued. The files
themselves are decoded in a child process that holds no credentials.
"""

from __future__ import annotations

import atexit
import base64
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from infra.decoding.process import Decoders
from infra.pictures import INVALID
from schemas.errors import Rejected

if TYPE_CHECKING:
    from schemas.limits import Limits

_DECODERS = Decoders()  # of this process; a child starts when it is first needed
atexit.register(_DECODERS.close)


def decode_picture(data: bytes, field: str, limits: Limits) -> Image.Image:
    """A picture, upright, in L, RGB or RGBA.

    Raises:
        Rejected: names the field.
        DecoderDown: no picture can be decoded at the moment.
    """
    pixels = _DECODERS.open(data, field, limits)
    return Image.frombytes(pixels.mode, (pixels.width, pixels.height), pixels.data)


def recipe_texts(data: bytes, field: str, limits: Limits) -> dict[str, str]:
    """The recipe texts in a picture, by keyword, see `infra.recipes`. Raises as `decode_picture`."""
    return _DECODERS.texts(data, field, limits)


def resize(picture: Image.Image, width: int, height: int, *, crop: bool) -> Image.Image:
    """A picture in another size: cropped to its middle, or stretched."""
    if picture.size == (width, height):
        return picture
    if crop:
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def grey_mask(mask: Image.Image) -> Image.Image:
    """A mask in one channel, read as A1111 reads it: where a part is transparent, what is opaque is repainted."""
    if mask.mode == "RGBA" and mask.getchannel("A").getextrema() != (255, 255):
        return mask.getchannel("A")
    return mask.convert("L")


def invert(mask: Image.Image) -> Image.Image:
    """The mask with black and white swapped."""
    return ImageOps.invert(mask.convert("L"))


def mask_of_alpha(picture: Image.Image, field: str) -> Image.Image:
    """A mask that is white where a picture is transparent. Raises `Rejected` if it has no alpha channel."""
    if picture.mode != "RGBA":
        text = "has no alpha channel; make the part that should be redrawn transparent"
        raise Rejected.of_field(field, text, INVALID)
    return ImageOps.invert(picture.getchannel("A"))


def png_base64(picture: Image.Image) -> str:
    """A picture as manifests carry it: a PNG file in base64."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode("ascii")
