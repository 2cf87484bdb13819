"""Pictures in and out: decoded safely, encoded fast, with the recipe inside.

Whatever arrives is hostile until decoded: only PNG, JPEG and WebP, the size read from the header
before a pixel is, and no library's message passed on. Whatever leaves carries two texts: the
community's `parameters`, and our own JSON under `dreamdrop`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from consumer.renderer.protocol import RawPicture
from schemas import infotext
from schemas.errors import Rejected, TooLarge
from schemas.result import Note

try:
    import fpng
except ImportError:  # not for this platform; Pillow is slower and makes the same pixels
    fpng = None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.limits import Limits
    from schemas.manifest import Output

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # here, as threads share filters

_FORMATS = ("PNG", "JPEG", "WEBP")
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_COMMENT_MAX = 60_000  # bytes; a JPEG segment holds 65,533 with all of its EXIF
_MAKER_NOTE = 0x927C  # EXIF's place for a maker's own data
_OURS = b"dreamdrop\0"  # begins it, so that nobody takes it for a camera's
_EXIF_MAX = 65_000  # bytes; a JPEG has one segment of 65,533 for all of it
_CUT = 5_000  # characters of each prompt that fit then, at four bytes each
_MULTIPLE = 8  # pixels; the VAE's downscaling
_TYPES = {"png": ("image/png", "png"), "jpeg": ("image/jpeg", "jpg"), "webp": ("image/webp", "webp")}


# In ------------------------------------------------------------------------------------------


def decode_base64(value: str, field: str, limits: Limits) -> bytes:
    """The bytes of a base64 text, bare or as a data URI. Raises `Rejected` that names the field."""
    uri = _DATA_URI.match(value)
    if uri is None and value[:5].lower() == "data:":
        raise _refused(
            field, "is a data URI without ';base64,'; send data:image/png;base64,<the file in base64>"
        )
    text = value[uri.end() :] if uri else value
    if len(text) * 3 // 4 > limits.max_body_bytes:
        raise TooLarge(f"{field}, decoded,", len(text) * 3 // 4, limits.max_body_bytes)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(
            "invalid_image", f"{field} is not valid base64; send the file's bytes in base64", field=field
        ) from error


def decode_picture(
    data: bytes, field: str, limits: Limits, *, mask: bool = False
) -> tuple[RawPicture, list[Note]]:
    """Pixels of a PNG, JPEG or WebP file.

    Returns:
        RGB (a mask: L) pixels, and what was changed on the way.

    Raises:
        Rejected: `invalid_image`, naming the field.
    """
    notes: list[Note] = []
    too_many = f"has more than {limits.max_input_pixels:,} pixels; send it smaller"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > limits.max_input_pixels:
                raise _refused(field, too_many)
            if getattr(picture, "n_frames", 1) > 1:
                text = f"{field}: only its first frame is used"
                notes.append(Note(code="first_frame", message=text, field=field))
            picture.load()
            return _raw(ImageOps.exif_transpose(picture), field, mask, notes), notes
    except (Rejected, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refused(field, too_many) from error
    except UnidentifiedImageError as error:
        raise _refused(field, "is not a picture that is read here; send PNG, JPEG or WebP") from error
    except Exception as error:  # decoders fail in many ways; none may end more than this request
        raise _refused(field, "is damaged or truncated; send the whole file") from error


def _refused(field: str, text: str) -> Rejected:
    return Rejected("invalid_image", f"{field} {text}", field=field)


def _raw(picture: Image.Image, field: str, mask: bool, notes: list[Note]) -> RawPicture:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits a channel
        picture = picture.convert("I").point(lambda v: v / 256).convert("L")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            text = f"{field}: transparent parts were put on {'black' if mask else 'white'}"
            notes.append(Note(code="flattened", message=text, field=field))
        ground = Image.new("RGBA", layered.size, "black" if mask else "white")
        picture = Image.alpha_composite(ground, layered)
    picture = picture.convert("L" if mask else "RGB")
    return RawPicture(picture.width, picture.height, len(picture.getbands()), picture.tobytes())


def fit(
    picture: RawPicture, mask: RawPicture | None, limits: Limits
) -> tuple[RawPicture, RawPicture | None, list[Note]]:
    """Bring a picture to a size that can be drawn, and its mask to the picture's.

    Larger than the limits: scaled down. Not multiples of 8: the edges are cut evenly, and no pixel
    in between changes. Each change is a note.

    Raises:
        Rejected: less than 8 pixels are left on a side.
    """
    notes: list[Note] = []
    image = _image(picture)
    scale = min(
        1.0, limits.max_side / max(image.size), (limits.max_pixels / (image.width * image.height)) ** 0.5
    )
    size = (int(image.width * scale), int(image.height * scale))
    wanted = (size[0] // _MULTIPLE * _MULTIPLE, size[1] // _MULTIPLE * _MULTIPLE)
    if 0 in wanted:
        raise _refused("image", f"is {picture.width} x {picture.height}; at least 8 x 8 pixels can be drawn")
    covering = _image(mask) if mask is not None else None
    if covering is not None and covering.size != image.size:
        was, now = f"{covering.width} x {covering.height}", f"{image.width} x {image.height}"
        text = f"mask_image was {was}; resized to the image's {now}"
        notes.append(Note(code="mask_resized", message=text, field="mask_image"))
        covering = covering.resize(image.size, Image.Resampling.NEAREST)
    if wanted != image.size:
        text = f"image was {image.width} x {image.height}; drawn at {wanted[0]} x {wanted[1]}"
        notes.append(Note(code="image_resized", message=text, field="image"))
        image = _to_size(image, wanted, scale < 1, Image.Resampling.LANCZOS)
        covering = _to_size(covering, wanted, scale < 1, Image.Resampling.NEAREST) if covering else None
    return _raw_of(image), _raw_of(covering) if covering else None, notes


def _to_size(
    image: Image.Image, size: tuple[int, int], scaled: bool, method: Image.Resampling
) -> Image.Image:
    if scaled:
        return ImageOps.fit(image, size, method)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _image(raw: RawPicture) -> Image.Image:
    return Image.frombytes("RGB" if raw.channels == 3 else "L", (raw.width, raw.height), raw.data)


def _raw_of(image: Image.Image) -> RawPicture:
    return RawPicture(image.width, image.height, len(image.getbands()), image.tobytes())


# Out -----------------------------------------------------------------------------------------


def encode(picture: RawPicture, output: Output, recipe: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """A picture as a file with its recipe inside: (bytes, content type, extension).

    PNG is written by fpng where it is installed: about a hundred times as fast as Pillow's default
    level, at a sixth more bytes.
    """
    content_type, extension = _TYPES[output.format]
    text = infotext.write(recipe)
    if output.format == "png":
        texts = {"parameters": text, "dreamdrop": json.dumps(recipe, ensure_ascii=False)}
        return _with_texts(_png(picture), texts), content_type, extension
    image, buffer = _image(picture), io.BytesIO()
    exif = Image.Exif()
    comment = exif.get_ifd(_EXIF)[_USER_COMMENT] = _comment(text, recipe)
    ours = _OURS + json.dumps(recipe, ensure_ascii=False).encode()
    if len(comment) + len(ours) <= _EXIF_MAX:
        exif.get_ifd(_EXIF)[_MAKER_NOTE] = ours
    if output.format == "jpeg":
        image.save(buffer, "JPEG", quality=output.quality, subsampling=0, exif=exif)
    else:
        image.save(buffer, "WEBP", quality=output.quality, method=2, exif=exif)
    return buffer.getvalue(), content_type, extension


def _comment(text: str, recipe: Mapping[str, Any]) -> bytes:
    """EXIF's UserComment. What does not fit is cut: a picture without all its words beats none."""
    coded = text.encode("utf-16-be")
    if len(coded) > _COMMENT_MAX:
        prompts = {k: str(recipe.get(k) or "")[:_CUT] for k in ("prompt", "negative_prompt")}
        coded = infotext.write({**recipe, **prompts, "loras": ()}).encode("utf-16-be")
    return b"UNICODE\0" + coded


def _png(picture: RawPicture) -> bytes:
    if fpng is not None and picture.channels == 3:
        encoded: bytes = fpng.from_bytes(picture.data, picture.width, picture.height, 3)
        return encoded
    buffer = io.BytesIO()
    _image(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _with_texts(png: bytes, texts: Mapping[str, str]) -> bytes:
    """Put text chunks before IEND (PNG, third edition, section 11.3.3): tEXt for Latin-1, else iTXt."""
    end = png.rindex(b"IEND") - 4
    chunks = b""
    for keyword, text in texts.items():
        try:
            kind, body = b"tEXt", keyword.encode() + b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            kind, body = b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text.encode("utf-8")
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:end] + chunks + png[end:]
