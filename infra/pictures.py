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
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from schemas.errors import Rejected, TooLarge
from schemas.result import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from schemas.limits import Limits

INVALID = "invalid_image"  # the code of every refusal here
FORMATS = ("PNG", "JPEG", "WEBP")
_SRGB_GAMMA, _SAME_GAMMA = 1 / 2.2, 0.05  # a file's gamma, and how far another may be from it
_BY_GAMMA = ("L", "LA", "RGB", "RGBA")
_FILE_NAME = re.compile(r"[^/\\\s]+\.(png|jpe?g|webp)", re.IGNORECASE)
_LONGEST_NAME = 100  # characters
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
        if len(text) <= _LONGEST_NAME and _FILE_NAME.fullmatch(text):
            what = f"is the name of a file; upload the file and give its key, such as uploads/{text}"
            raise _refusal(field, f"{what}, or send its bytes in base64") from error
        raise _refusal(field, "is not valid base64; send the file's bytes in base64") from error


@contextmanager
def open_picture(
    data: bytes,
    field: str,
    limits: Limits,
    *,
    formats: tuple[str, ...] = FORMATS,
    before_load: Callable[[Image.Image], object] | None = None,
) -> Iterator[tuple[Image.Image, list[Note]]]:
    """Decode a picture file. Inside the `with`, too, whatever a decoder raises becomes a `Rejected`.

    Only a process without credentials should decode what strangers send: see `infra.decoding`.

    Args:
        formats: by Pillow's names; a file of another format is refused.
        before_load: is given the file's header once it is known to be small enough.

    Yields:
        The picture, upright, in sRGB, with eight bits a channel and otherwise in its own mode; and notes
        of what was changed or left out.

    Raises:
        Rejected: `invalid_image`, naming the field.
    """
    too_many = f"has more than {limits.max_input_pixels:,} pixels; send it smaller"
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            if picture.width * picture.height > limits.max_input_pixels:
                raise _refusal(field, too_many)
            if picture.mode == "F":  # TIFF only; nothing says which number is white
                raise _refusal(field, "has floating-point pixels; save it with 8 or 16 bits a channel")
            notes: list[Note] = []
            if getattr(picture, "n_frames", 1) > 1:
                text = f"{field}: only its first frame is used"
                notes.append(Note(code="first_frame", message=text, field=field))
            if before_load is not None:
                before_load(picture)
            picture.load()
            upright = _eight_bits(ImageOps.exif_transpose(picture))
            yield _srgb(upright, picture.info, field, notes), notes
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
    if picture.mode.startswith("I"):  # 16 bits a channel
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture


def _srgb(picture: Image.Image, info: Mapping[Any, Any], field: str, notes: list[Note]) -> Image.Image:
    """The picture's colours in sRGB, where the file says that they are others: by a profile or a gamma."""
    profile, gamma = info.get("icc_profile"), info.get("gamma")
    converted, name = picture, ""
    if isinstance(profile, bytes) and profile:
        try:
            converted, name = _by_profile(picture, profile)
        except Exception:  # a profile is as hostile as a picture, and the picture can be drawn without it
            text = f"{field}: its colour profile cannot be used; its colours were taken for sRGB"
            notes.append(Note(code="profile_ignored", message=text, field=field))
    elif isinstance(gamma, float) and gamma > 0 and "srgb" not in info and picture.mode in _BY_GAMMA:
        converted, name = _by_gamma(picture, gamma), f"gamma {gamma:.4g}"
    if converted is not picture:
        text = f"{field}: its colours were converted to sRGB from {name or 'another profile'}"
        notes.append(Note(code="converted_to_srgb", message=text, field=field))
    return converted


def _by_profile(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The picture in sRGB, and the profile's name. The same picture if the profile is sRGB."""
    from PIL import ImageCms  # few pictures need it

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = "".join(c for c in ImageCms.getProfileDescription(source).strip()[:60] if c.isprintable())
    if "srgb" in name.lower():
        return picture, name  # a conversion would only round
    alpha = None
    if "A" in picture.mode or "transparency" in picture.info:
        layered = picture.convert("LA" if picture.mode in ("L", "LA") else "RGBA")
        picture, alpha = layered.convert(layered.mode[:-1]), layered.getchannel("A")
    elif picture.mode in ("1", "P"):
        picture = picture.convert("RGB" if picture.mode == "P" else "L")
    converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "None is the answer of a conversion in place only"
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, name


def _by_gamma(picture: Image.Image, gamma: float) -> Image.Image:
    """The picture with the samples light ** (1 / 2.2), which sRGB nearly has (PNG, third edition, 13.13)."""
    power = _SRGB_GAMMA / gamma
    if abs(power - 1) < _SAME_GAMMA:
        return picture
    curve = [round(255 * (value / 255) ** power) for value in range(256)]
    same = list(range(256))
    return picture.point([v for band in picture.getbands() for v in (same if band == "A" else curve)])
