"""Pictures in: hostile until decoded."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from infra.decoding import drawing
from infra.decoding.process import Pixels
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.result import Note

LIMITS = Limits()


def decode_picture(
    data: bytes, field: str, limits: Limits, *, mask: bool = False
) -> tuple[Pixels, list[Note]]:
    """What the decoder's child makes of a file, made here."""
    if mask:
        picture, notes = drawing.decode_mask(data, field, limits)
    else:
        picture, _, notes = drawing.decode_image(data, field, limits)
    return Pixels(picture.mode, picture.width, picture.height, picture.tobytes()), notes


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, "red").convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bombs() -> dict[str, bytes]:
    """Small files whose headers ask for hundreds of megapixels, or whose texts expand to megabytes."""
    png = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x")
    jpeg = bytearray(file(red(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    lossless = bytearray(file(red(), "WEBP", lossless=True))
    at = lossless.index(b"VP8L") + 9
    lossless[at : at + 4] = struct.pack("<I", 16_382 | 16_382 << 14)
    lossy = bytearray(file(red(), "WEBP"))
    at = lossy.index(b"\x9d\x01\x2a") + 3
    lossy[at : at + 4] = struct.pack("<HH", 16_383, 16_383)
    canvas = bytearray(file(red("RGBA"), "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16))]))
    at = canvas.index(b"VP8X") + 12
    canvas[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    return {
        "png": b"\x89PNG\r\n\x1a\n" + png,
        "jpeg": bytes(jpeg),
        "webp-lossless": bytes(lossless),
        "webp-lossy": bytes(lossy),
        "webp-canvas": bytes(canvas),
    }


def refusal(data: bytes, limits: Limits = LIMITS) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decode_picture(data, "image", limits)
    error = caught.value
    assert (error.code, error.field) == ("invalid_image", "image")
    assert not re.search(r"0x[0-9a-f]{6}|<[\w.]+|/|Error", error.message), "tells of our insides"
    return error


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_a_bomb_is_refused_by_its_header(kind: str):
    """Not one pixel is decoded; the message says how many are allowed."""
    assert "more than 16,777,216 pixels" in refusal(bombs()[kind]).message


def test_the_pixel_limit_is_exact():
    """As many as the limit pass, one row more does not."""
    limits = Limits(max_input_pixels=24 * 16)
    assert decode_picture(file(red()), "image", limits)[0].width == 24
    assert "more than 384" in refusal(file(red(size=(24, 17))), limits).message


def test_a_text_that_unfolds_to_megabytes_is_refused():
    """A compressed PNG text of 64 MB is not decompressed."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20)))
    data = file(red())
    refusal(data[:33] + text + data[33:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind: str, part: float):
    """Half a picture is never taken for a whole one."""
    data = file(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    assert "whole file" in refusal(data[: int(len(data) * part)]).message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        file(red("P"), "GIF"),
        file(red(), "BMP"),
        file(red(), "TIFF"),
    ],
    ids=["empty", "text", "svg", "pdf", "eps", "gif", "bmp", "tiff"],
)
def test_other_formats_are_refused(data: bytes):
    """Whatever it is called, only PNG, JPEG and WebP are opened."""
    assert "send PNG, JPEG or WebP" in refusal(data).message


@given(
    st.sampled_from([file(red("P")), file(red(), "JPEG"), file(red("RGBA"), "WEBP")]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_ends_in_a_picture_or_a_refusal(data: bytes, flips: list[tuple[int, int]]):
    """No damaged byte brings another error out of the decoders."""
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    try:
        pixels, _ = decode_picture(bytes(damaged), "image", LIMITS)
    except Rejected:
        return
    assert len(pixels.data) == pixels.width * pixels.height * 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (file(red()), None),
        (file(red("P")), None),
        (file(red("CMYK"), "JPEG", quality=100), None),
        (file(red("RGBA")), None),
        (file(red(), "WEBP", lossless=True), None),
        (
            file(red(), "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16))], lossless=True),
            "first_frame",
        ),
        (file(red(), save_all=True, append_images=[Image.new("RGB", (24, 16))]), "first_frame"),
    ],
    ids=["rgb", "palette", "cmyk", "opaque-alpha", "webp", "moving-webp", "moving-png"],
)
def test_every_kind_of_picture_becomes_rgb(data: bytes, code: str | None):
    """Red stays red; what is left out is noted."""
    pixels, notes = decode_picture(data, "image", LIMITS)
    assert (pixels.width, pixels.height, pixels.mode) == (24, 16, "RGB")
    r, g, b = pixels.data[:3]
    assert (r > 250, g < 5, b < 5) == (True, True, True)
    assert [note.code for note in notes] == ([code] if code else [])


def test_sixteen_bits_keep_their_brightness():
    """A 16-bit grey picture is scaled, not clipped to white."""
    data = file(Image.new("I;16", (8, 8), 128 * 256))
    assert decode_picture(data, "image", LIMITS)[0].data[:3] == bytes([128, 128, 128])


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_put_on_white_and_told(mode: str):
    """By an alpha channel or by a palette's transparent entry."""
    clear = Image.new(mode, (8, 8), 0)
    data = file(clear, transparency=0) if mode == "P" else file(clear)
    pixels, notes = decode_picture(data, "image", LIMITS)
    assert pixels.data[:3] == b"\xff\xff\xff"
    assert [(note.code, note.field) for note in notes] == [("flattened", "image")]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_photograph_is_turned_upright(kind: str):
    """As its EXIF orientation says: 6 means that the camera was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("RGB", (32, 16), "white")
    wide.paste("black", (0, 0, 16, 16))
    pixels, _ = decode_picture(file(wide, kind, exif=exif), "image", LIMITS)
    assert (pixels.width, pixels.height) == (16, 32)
    assert (pixels.data[0] < 9, pixels.data[-1] > 246) == (True, True)


def test_a_mask_is_grey():
    """One channel: white is repainted; transparent is not."""
    pixels, _ = decode_picture(file(Image.new("RGB", (8, 8), "white")), "mask_image", LIMITS, mask=True)
    assert (pixels.mode, pixels.data) == ("L", b"\xff" * 64)
    clear, notes = decode_picture(file(Image.new("RGBA", (8, 8))), "mask_image", LIMITS, mask=True)
    assert (clear.data, notes[0].field) == (bytes(64), "mask_image")


def test_our_own_texts_pass_as_input():
    """A picture made here can be sent back as img2img's image."""
    info = PngInfo()
    info.add_text("parameters", "x" * 9000)
    assert decode_picture(file(red(), pnginfo=info), "image", LIMITS)[1] == []


# Colour that a file describes in its own way -------------------------------------------------


def swapped_profile() -> bytes:
    """A profile whose red and green are sRGB's green and red: the primaries' tags exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    for name in (b"s\0R\0G\0B", b"sRGB b"):
        while name in data:
            place = data.index(name)
            data[place : place + len(name)] = name.replace(b"s", b"t").replace(b"R", b"S")
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_are_converted_by_the_files_profile(mode: str, kind: str):
    """A red that the profile calls green becomes green, and the result says so."""
    picture = red(mode) if kind == "PNG" else red("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(picture, kind, icc_profile=swapped_profile(), **options)
    pixels, notes = decode_picture(data, "image", LIMITS)
    r, g, b = pixels.data[:3]
    assert (r < 16, g > 240, b < 16) == (True, True, True)
    assert [note.code for note in notes] == ["converted_to_srgb"]


def test_srgb_is_left_as_it_is():
    """No pixel is rounded, and nothing is noted."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode_picture(file(red(), icc_profile=profile), "image", LIMITS) == decode_picture(
        file(red()), "image", LIMITS
    )


@pytest.mark.parametrize("profile", [b"junk", swapped_profile()[:300], b"\0" * 5000])
def test_a_damaged_profile_costs_a_note(profile: bytes):
    """The picture is drawn as if it were sRGB."""
    pixels, notes = decode_picture(file(red(), icc_profile=profile), "image", LIMITS)
    assert pixels.data[:3] == b"\xff\0\0"
    assert [note.code for note in notes] == ["profile_ignored"]


def test_a_png_with_linear_light_is_brightened():
    """A gAMA chunk of 1.0: a sample of 55 is a quarter of the light, which sRGB writes as 127."""
    plain = file(Image.new("RGB", (8, 8), (55, 55, 55)))
    chunk = b"gAMA" + (100_000).to_bytes(4, "big")
    data = plain[:33] + b"\0\0\0\4" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + plain[33:]
    pixels, notes = decode_picture(data, "image", LIMITS)
    assert abs(pixels.data[0] - 127) < 3
    assert [note.code for note in notes] == ["converted_to_srgb"]


# Masks that speak by their transparency ------------------------------------------------------


def layer(ground: object, paint: object) -> bytes:
    picture = Image.new("RGBA", (16, 16), ground)  # type: ignore[arg-type]
    picture.paste(paint, (4, 4, 12, 12))  # type: ignore[arg-type]
    return file(picture)


@pytest.mark.parametrize(
    "data",
    [
        layer((0, 0, 0, 255), (0, 0, 0, 0)),  # OpenAI's: a hole in black
        layer((200, 60, 20, 255), (0, 0, 0, 0)),  # a hole in a photograph
        layer((0, 0, 0, 0), (0, 0, 0, 255)),  # black paint on a layer
        layer((0, 0, 0, 0), (255, 0, 0, 255)),  # red paint on a layer
    ],
    ids=["hole", "photograph", "black", "red"],
)
def test_a_mask_by_transparency_is_refused(data: bytes):
    """The same file means opposite things in different programs, so nothing is guessed."""
    with pytest.raises(Rejected, match="mask_image seems to say by its transparency"):
        decode_picture(data, "mask_image", LIMITS, mask=True)


def test_white_paint_on_a_layer_is_a_mask():
    """As paint programs save it; a soft edge and opaque black are fine."""
    for paint in ((255, 255, 255, 255), (255, 255, 255, 160)):
        pixels, _ = decode_picture(layer((0, 0, 0, 0), paint), "mask_image", LIMITS, mask=True)
        assert (pixels.data[0], pixels.data[16 * 8 + 8] > 127) == (0, True)
