"""The recipe that a picture carries, written where other programs look for it, and read back.

A recipe is written as two texts: `parameters`, which the Stable Diffusion community's tools read, and
`dreamdrop`, the same fields as JSON. A PNG holds both in text chunks before the pixels, where
`Image.open(f).info` finds them. A JPEG or WebP holds the first in EXIF's UserComment, as A1111's web UI
writes it, and the second in XMP.
"""

from __future__ import annotations

import html
import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from infra.pictures import INVALID
from schemas.errors import Rejected
from schemas.text import infotext

if TYPE_CHECKING:
    import io
    from collections.abc import Mapping
    from pathlib import Path

PARAMETERS, RECIPE = infotext.PARAMETERS, infotext.RECIPE  # keywords of the two texts
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C  # EXIF 2.3: the block, and two of its tags
_MAKE, _MODEL = 0x010F, 0x0110  # where ComfyUI puts its graphs in a WebP, as "prompt:{...}"
_HEADER = 33  # bytes of a PNG before its other chunks: the signature, and IHDR, which is always first
_UNICODE = b"UNICODE\0"  # UserComment's character code
_OUR_MARK = b"dreamdrop\0"  # begins the MakerNote that held our JSON before XMP did
_PART_MAX = 65_000  # bytes; a JPEG has one segment of 65,533 for all of its EXIF, and one for XMP
_CUT = 5_000  # characters of each prompt that fit then, at four bytes each (in XML: five for an "&")
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dreamdrop="urn:dreamdrop:1.0:">'
    "<dreamdrop:recipe>{}</dreamdrop:recipe></rdf:Description></rdf:RDF></x:xmpmeta>\n"
    '<?xpacket end="w"?>'
)
_IN_XMP = re.compile(  # an element, or the attribute that another program made of it
    r"dreamdrop:recipe(?:>([^<]{2,200000})<|=\"([^\"<]{2,200000})\"|='([^'<]{2,200000})')"
)
_NOT_IN_XML = re.compile("[\ufffe\uffff\ud800-\udfff]")

# Field types of a TIFF directory.
_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 2, 3, 4, 5, 7
_SIZES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1}  # bytes
_Directory = dict[int, tuple[int, bytes]]  # tag to type and value


def add_to_png(png: bytes, recipe: Mapping[str, Any]) -> bytes:
    """A PNG file with the recipe in it.

    The chunks stand before IDAT (PNG, third edition, section 11.3.3): tEXt for Latin-1, else iTXt.
    """
    chunks = b""
    for keyword, text in ((PARAMETERS, infotext.write(recipe)), (RECIPE, _json(recipe))):
        try:
            kind, body = b"tEXt", keyword.encode() + b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            kind, body = b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text.encode("utf-8")
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:_HEADER] + chunks + png[_HEADER:]


def exif(recipe: Mapping[str, Any], width: int, height: int) -> bytes:
    """The EXIF of a JPEG or WebP file that carries the recipe: what EXIF 2.3 requires, and UserComment.

    Written by hand: Pillow gives fields that it does not know the type BYTE, which other readers refuse.
    """
    block: _Directory = {
        0x9000: (_UNDEFINED, b"0230"),  # ExifVersion
        0x9101: (_UNDEFINED, b"\1\2\3\0"),  # ComponentsConfiguration: Y, Cb, Cr
        USER_COMMENT: (_UNDEFINED, _user_comment(recipe)),
        0xA000: (_UNDEFINED, b"0100"),  # FlashpixVersion
        0xA001: (_SHORT, struct.pack(">H", 1)),  # ColorSpace: sRGB
        0xA002: (_LONG, struct.pack(">I", width)),
        0xA003: (_LONG, struct.pack(">I", height)),
    }
    resolution = struct.pack(">II", 72, 1)  # pixels per inch; the value of the standard where it is unknown
    first: _Directory = {
        0x011A: (_RATIONAL, resolution),
        0x011B: (_RATIONAL, resolution),
        0x0128: (_SHORT, struct.pack(">H", 2)),  # ResolutionUnit: inches
        0x0131: (_ASCII, b"Dreamdrop\0"),  # Software
        0x0213: (_SHORT, struct.pack(">H", 1)),  # YCbCrPositioning: centred
        EXIF_IFD: (_LONG, bytes(4)),
    }
    start = 8  # bytes before the first directory
    first[EXIF_IFD] = (_LONG, struct.pack(">I", start + len(_directory(first, start))))
    body = _directory(first, start)
    return b"Exif\0\0MM\0*\0\0\0\x08" + body + _directory(block, start + len(body))


def xmp(recipe: Mapping[str, Any]) -> bytes:
    """An XMP packet that carries the recipe as JSON. Prompts that do not fit are cut, and `cut` says so."""
    packet = _packet(recipe)
    return packet if len(packet) <= _PART_MAX else _packet(_shortened(recipe) | {"cut": True})


def _packet(recipe: Mapping[str, Any]) -> bytes:
    text = _NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", _json(recipe))
    return _XMP.format(html.escape(text, quote=False)).encode()


def _directory(entries: _Directory, start: int) -> bytes:
    """A TIFF directory, big-endian, whose longer values follow it; `start` is its place in the file."""
    table, values = b"", b""
    place = start + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        inline = value.ljust(4, b"\0")
        if len(value) > 4:
            inline = struct.pack(">I", place + len(values))
            values += value + bytes(len(value) % 2)  # values begin at even places
        table += struct.pack(">HHI", tag, kind, len(value) // _SIZES[kind]) + inline
    return struct.pack(">H", len(entries)) + table + bytes(4) + values


def _json(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, ensure_ascii=False)


def _user_comment(recipe: Mapping[str, Any]) -> bytes:
    """EXIF's UserComment, its text in the byte order of the block. Prompts that do not fit are cut."""
    text = infotext.write(recipe).encode("utf-16-be")
    if len(text) > _PART_MAX - 300:  # bytes of the other fields
        text = infotext.write(_shortened(recipe) | {"loras": ()}).encode("utf-16-be")
    return _UNICODE + text


def _shortened(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {**recipe, **{k: str(recipe.get(k) or "")[:_CUT] for k in ("prompt", "negative_prompt")}}


def recipe_texts(source: Path | io.BytesIO, name: str) -> dict[str, str]:
    """The recipe texts that a picture carries, by keyword: ours, A1111's and those of other programs.

    Args:
        name: what the picture is called in a refusal.

    Raises:
        Rejected: the picture cannot be read.
    """
    try:
        with Image.open(source) as picture:
            picture.load()  # other programs' chunks may stand behind the pixels
            texts = {
                keyword: str(text)
                for keyword in infotext.KEYWORDS
                if isinstance(text := picture.info.get(keyword), str)
            }
            tags = picture.getexif()
            block, labels = dict(tags.get_ifd(EXIF_IFD)), (tags.get(_MAKE), tags.get(_MODEL))
            packet = picture.info.get("xmp")
    except UnidentifiedImageError as error:
        raise Rejected(INVALID, f"{name} is not a picture that can be read") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise Rejected(INVALID, f"cannot read the picture {name}: {why}") from error
    comment = _bytes_or_text(block.get(USER_COMMENT))
    if PARAMETERS not in texts and comment:
        texts[PARAMETERS] = _comment_text(comment)
    if RECIPE not in texts and (ours := _our_json(packet, block.get(MAKER_NOTE))):
        texts[RECIPE] = ours
    for label in labels:
        keyword, _, text = label.partition(":") if isinstance(label, str) else ("", "", "")
        if keyword in infotext.GRAPHS:
            texts.setdefault(keyword, text)
    return texts


def _our_json(packet: object, note: object) -> str:
    """Our JSON out of XMP, or out of the MakerNote of an older version; or an empty text."""
    if isinstance(packet, bytes) and (found := _IN_XMP.search(packet.decode("utf-8", "replace"))):
        return html.unescape(found[found.lastindex or 0])
    if isinstance(note, bytes) and note.startswith(_OUR_MARK):
        return note[len(_OUR_MARK) :].decode("utf-8", "replace")
    return ""


def _bytes_or_text(value: object) -> bytes | str:
    """A UserComment of any type, as strangers write it; of the type BYTE, Pillow gives numbers."""
    if isinstance(value, tuple) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return bytes(value)
    return value if isinstance(value, (bytes, str)) else b""


def _comment_text(comment: bytes | str) -> str:
    """The text of EXIF's UserComment: after eight bytes of character code."""
    if isinstance(comment, str):
        return comment
    if not comment.startswith(_UNICODE):
        return comment[8:].decode("utf-8", "replace")
    text = comment[len(_UNICODE) :]
    big = text[::2].count(0) >= text[1::2].count(0)  # a byte order mark is rare; the last line is ASCII
    return text.decode("utf-16-be" if big else "utf-16-le", "replace")
