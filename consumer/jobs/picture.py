"""Pictures as pixels: input files become raw pixels of a size that can be drawn, drawn pixels become files.

`infra.pictures` opens files safely, and `infra.recipes` writes the recipe. This module adds what drawing needs.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageOps

from consumer.renderer.protocol import RawPicture
from infra import pictures, recipes
from schemas.errors import Rejected
from schemas.result import Note

try:
    import fpng
except ImportError:  # not for this platform; Pillow is slower and makes the same pixels
    fpng = None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.limits import Limits
    from schemas.manifest import Output

warnings.filterwarnings(
    "error", category=Image.DecompressionBombWarning
)  # once, as all threads share filters

_BRIGHT = 128  # a channel from here on is rather white, and an alpha rather opaque
_COLOURED = 64  # how far the channels of a pixel are apart that is not grey
_MULTIPLE = 8  # pixels; the VAE's downscaling
_TYPES = {"png": ("image/png", "png"), "jpeg": ("image/jpeg", "jpg"), "webp": ("image/webp", "webp")}


def decode_picture(
    data: bytes, field: str, limits: Limits, *, mask: bool = False
) -> tuple[RawPicture, list[Note]]:
    """Pixels of a PNG, JPEG or WebP file.

    Returns:
        RGB (a mask: L) pixels, and what was changed on the way.

    Raises:
        Rejected: `invalid_image`, naming the field.
    """
    with pictures.open_picture(data, field, limits) as (picture, notes):
        return _pixels(_flatten(picture, field, mask, notes)), notes


def _flatten(picture: Image.Image, field: str, mask: bool, notes: list[Note]) -> Image.Image:
    """The picture without its alpha channel, in RGB (a mask: L)."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        if mask:
            _expect_white_paint(layered, field)
        if layered.getchannel("A").getextrema() != (255, 255):
            text = f"{field}: transparent parts were put on {'black' if mask else 'white'}"
            notes.append(Note(code="flattened", message=text, field=field))
        ground = Image.new("RGBA", layered.size, "black" if mask else "white")
        picture = Image.alpha_composite(ground, layered)
    return picture.convert("L" if mask else "RGB")


def _expect_white_paint(mask: Image.Image, field: str) -> None:
    """Refuse a mask whose transparency says what to repaint: a guess would draw something else.

    It is one if what is opaque in it is coloured, as in a photograph with a hole, or is nowhere white.
    """
    alpha = mask.getchannel("A").point(lambda value: 255 * (value >= _BRIGHT))
    if alpha.getextrema() != (0, 255):
        return
    opaque = alpha.convert("1")
    red, green, blue = (mask.getchannel(band) for band in "RGB")
    high = ImageChops.lighter(red, ImageChops.lighter(green, blue))
    low = ImageChops.darker(red, ImageChops.darker(green, blue))
    coloured = sum(ImageChops.subtract(high, low).histogram(opaque)[_COLOURED:])
    white = sum(mask.convert("L").histogram(opaque)[_BRIGHT:])
    if coloured or not white:
        text = "seems to say by its transparency what to repaint; give one that is white there, and black elsewhere"
        raise Rejected.of_field(field, text, pictures.INVALID)


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
    by_area = (limits.max_pixels / (image.width * image.height)) ** 0.5
    scale = min(1.0, limits.max_side / max(image.size), by_area)
    size = (int(image.width * scale), int(image.height * scale))
    wanted = (size[0] // _MULTIPLE * _MULTIPLE, size[1] // _MULTIPLE * _MULTIPLE)
    if 0 in wanted:
        raise Rejected.of_field(
            "image",
            f"is {picture.width} x {picture.height}; at least 8 x 8 pixels can be drawn",
            pictures.INVALID,
        )
    covering = _image(mask) if mask is not None else None
    if covering is not None and covering.size != image.size:
        was, now = f"{covering.width} x {covering.height}", f"{image.width} x {image.height}"
        text = f"mask_image was {was}; resized to the image's {now}"
        notes.append(Note(code="mask_resized", message=text, field="mask_image"))
        covering = covering.resize(image.size, Image.Resampling.NEAREST)
    if wanted != image.size:
        text = f"image was {image.width} x {image.height}; drawn at {wanted[0]} x {wanted[1]}"
        text += (
            f" (at most {limits.max_pixels:,} pixels are drawn with this model)"
            if scale == by_area < 1
            else ""
        )
        notes.append(Note(code="image_resized", message=text, field="image"))
        image = _to_size(image, wanted, scale < 1, Image.Resampling.LANCZOS)
        covering = _to_size(covering, wanted, scale < 1, Image.Resampling.NEAREST) if covering else None
    return _pixels(image), _pixels(covering) if covering else None, notes


def mask_notes(mask: RawPicture) -> list[Note]:
    """Where a mask asks for something else than white and black do: pipelines repaint what is brighter than half."""
    counts = _image(mask).histogram()
    if not sum(counts[128:]):
        text = "mask_image has nothing brighter than half, so nothing is repainted; paint white what should change"
        return [Note(code="empty_mask", message=text, field="mask_image")]
    if sum(counts[32:224]) > sum(counts[128:]) / 2:  # more than the soft edge of what is white
        text = "mask_image has much that is neither black nor white; what is brighter than half is repainted"
        return [Note(code="grey_mask", message=text, field="mask_image")]
    return []


def _to_size(
    image: Image.Image, size: tuple[int, int], scaled: bool, method: Image.Resampling
) -> Image.Image:
    if scaled:
        return ImageOps.fit(image, size, method)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _image(raw: RawPicture) -> Image.Image:
    return Image.frombytes("RGB" if raw.channels == 3 else "L", (raw.width, raw.height), raw.data)


def _pixels(image: Image.Image) -> RawPicture:
    return RawPicture(image.width, image.height, len(image.getbands()), image.tobytes())


def encode(picture: RawPicture, output: Output, recipe: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """A picture as a file with its recipe inside: (bytes, content type, extension).

    PNG is written by fpng where it is installed: about a hundred times as fast as Pillow's default
    level, at a sixth more bytes.
    """
    content_type, extension = _TYPES[output.format]
    if output.format == "png":
        return recipes.add_to_png(_png(picture), recipe), content_type, extension
    image, buffer = _image(picture), io.BytesIO()
    exif, xmp = recipes.exif(recipe, image.width, image.height), recipes.xmp(recipe)
    if output.format == "jpeg":
        image.save(buffer, "JPEG", quality=output.quality, subsampling=0, exif=exif, xmp=xmp)
    else:
        image.save(buffer, "WEBP", quality=output.quality, method=2, exif=exif, xmp=xmp)
    return buffer.getvalue(), content_type, extension


def _png(picture: RawPicture) -> bytes:
    if fpng is not None and picture.channels == 3:
        encoded: bytes = fpng.from_bytes(picture.data, picture.width, picture.height, 3)
        return encoded
    buffer = io.BytesIO()
    _image(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
