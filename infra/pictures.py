"""Safe decoding of pictures from strangers.

A picture is hostile until it is decoded. Only PNG, JPEG and WebP are opened, the size is checked in the
header before a pixel is decoded, and no message of a decoder is passed on.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from schemas.errors import Rejected, TooLarge
from schemas.result import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.limits import Limits

INVALID = "invalid_image"  # the code of every refusal here
FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def decode_base64(value: object, field: str, limits: Limits) -> bytes:
    """The bytes of a base64 text, bare or as a data URI. Raises `Rejected` that names the field."""
    if not isinstance(value, str):
        raise _refusal(field, "should be a text: the file's bytes in base64")
    uri = _DATA_URI.match(value)
    if uri is None and value[:5].lower() == "data:":
        text = "is a data URI without ';base64,'; send data:image/png;base64,<the file in base64>"
        raise _refusal(field, text)
    text = value[uri.end() :] if uri else value
    if len(text) * 3 // 4 > limits.max_body_bytes:
        raise TooLarge(f"{field}, decoded,", len(text) * 3 // 4, limits.max_body_bytes)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal(field, "is not valid base64; send the file's bytes in base64") from error


@contextmanager
def open_picture(data: bytes, field: str, limits: Limits) -> Iterator[tuple[Image.Image, list[Note]]]:
    """Decode a PNG, JPEG or WebP file. Inside the `with`, too, whatever a decoder raises becomes a `Rejected`.

    Yields:
        The picture, upright, with eight bits a channel and otherwise in its own mode; and a note if
        it has more frames than one.

    Raises:
        Rejected: `invalid_image`, naming the field.
    """
    too_many = f"has more than {limits.max_input_pixels:,} pixels; send it smaller"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > limits.max_input_pixels:
                raise _refusal(field, too_many)
            notes: list[Note] = []
            if getattr(picture, "n_frames", 1) > 1:
                text = f"{field}: only its first frame is used"
                notes.append(Note(code="first_frame", message=text, field=field))
            picture.load()
            yield _eight_bits(ImageOps.exif_transpose(picture)), notes
    except (Rejected, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refusal(field, too_many) from error
    except UnidentifiedImageError as error:
        raise _refusal(field, "cannot be read as a picture; send PNG, JPEG or WebP") from error
    except Exception as error:  # decoders fail in many ways; none may end more than this request
        raise _refusal(field, "is damaged or truncated; send the whole file") from error


def _refusal(field: str, text: str) -> Rejected:
    return Rejected.of_field(field, text, INVALID)


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits a channel
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture
