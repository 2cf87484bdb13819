"""Safe decoding of pictures from strangers, and the recipe that pictures made here carry.

A picture is hostile until it is decoded. Only PNG, JPEG and WebP are opened, the size is checked in the
header before a pixel is decoded, and no message of a decoder is passed on.

A recipe is written as two texts: `parameters`, which the Stable Diffusion community's tools read, and
`dreamdrop`, the same fields as JSON. A PNG holds both in text chunks. A JPEG or WebP holds them in EXIF, as
UserComment and MakerNote.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from schemas import infotext
from schemas.errors import Rejected, TooLarge
from schemas.result import Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from schemas.limits import Limits

INVALID = "invalid_image"  # the code of every refusal here
FORMATS = ("PNG", "JPEG", "WEBP")
PARAMETERS, RECIPE = "parameters", "dreamdrop"  # keywords of the two texts
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C  # EXIF 2.3: the block, and its two tags
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_UNICODE = b"UNICODE\0"  # UserComment's character code
_OUR_MARK = b"dreamdrop\0"  # at the start of our MakerNote, so that it is not taken for a camera's
_EXIF_MAX = 65_000  # bytes; a JPEG has one segment of 65,533 for all of its EXIF
_COMMENT_MAX = 60_000  # bytes of that for the UserComment
_CUT = 5_000  # characters of each prompt that fit then, at four bytes each


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


def add_recipe(png: bytes, recipe: Mapping[str, Any]) -> bytes:
    """A PNG file with the recipe in it.

    The chunks stand before IEND (PNG, third edition, section 11.3.3): tEXt for Latin-1, else iTXt.
    """
    end = png.rindex(b"IEND") - 4
    chunks = b""
    for keyword, text in ((PARAMETERS, infotext.write(recipe)), (RECIPE, _json(recipe))):
        try:
            kind, body = b"tEXt", keyword.encode() + b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            kind, body = b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text.encode("utf-8")
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:end] + chunks + png[end:]


def recipe_exif(recipe: Mapping[str, Any]) -> Image.Exif:
    """The EXIF of a JPEG or WebP file that carries the recipe."""
    exif = Image.Exif()
    comment = exif.get_ifd(EXIF_IFD)[USER_COMMENT] = _user_comment(recipe)
    ours = _OUR_MARK + _json(recipe).encode()
    if len(comment) + len(ours) <= _EXIF_MAX:
        exif.get_ifd(EXIF_IFD)[MAKER_NOTE] = ours
    return exif


def _json(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, ensure_ascii=False)


def _user_comment(recipe: Mapping[str, Any]) -> bytes:
    """EXIF's UserComment. Prompts that do not fit are cut, so that the picture can be written."""
    text = infotext.write(recipe).encode("utf-16-be")
    if len(text) > _COMMENT_MAX:
        prompts = {k: str(recipe.get(k) or "")[:_CUT] for k in ("prompt", "negative_prompt")}
        text = infotext.write({**recipe, **prompts, "loras": ()}).encode("utf-16-be")
    return _UNICODE + text


def recipe_texts(source: Path | io.BytesIO, name: str) -> dict[str, str]:
    """The recipe texts that a picture carries, by keyword: of ours both, of other programs' `parameters`.

    Args:
        name: what the picture is called in a refusal.

    Raises:
        Rejected: the picture cannot be read.
    """
    try:
        with Image.open(source) as picture:
            picture.load()  # chunks may stand behind the pixels
            texts = {
                keyword: str(text)
                for keyword in (PARAMETERS, RECIPE)
                if isinstance(text := picture.info.get(keyword), str)
            }
            exif = picture.getexif().get_ifd(EXIF_IFD)
    except UnidentifiedImageError as error:
        raise Rejected(INVALID, f"{name} is not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise Rejected(INVALID, f"cannot read the picture {name}: {why}") from error
    comment = exif.get(USER_COMMENT)  # of any type: a stranger wrote it
    if PARAMETERS not in texts and comment and isinstance(comment, (bytes, str)):
        texts[PARAMETERS] = _comment_text(comment)
    note = exif.get(MAKER_NOTE)
    if RECIPE not in texts and isinstance(note, bytes) and note.startswith(_OUR_MARK):
        texts[RECIPE] = note[len(_OUR_MARK) :].decode("utf-8", "replace")
    return texts


def _comment_text(comment: bytes | str) -> str:
    """The text of EXIF's UserComment: after eight bytes of character code."""
    if isinstance(comment, str):
        return comment
    if not comment.startswith(_UNICODE):
        return comment[8:].decode("utf-8", "replace")
    text = comment[len(_UNICODE) :]
    big = text[::2].count(0) >= text[1::2].count(0)  # a byte order mark is rare; the last line is ASCII
    return text.decode("utf-16-be" if big else "utf-16-le", "replace")
