"""From files to pixels that can be drawn: without alpha, and in a size within the limits. Runs in the child.

`infra.pictures` opens files safely; this module adds what drawing needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageOps

from infra import pictures
from schemas.defaults import SIZE_MULTIPLE
from schemas.errors import Rejected
from schemas.result import Note

if TYPE_CHECKING:
    from schemas.limits import Limits

_BRIGHT = 128  # a channel from here on is rather white, and an alpha rather opaque
_COLOURED = 64  # how far the channels of a pixel are apart that is not grey
_Size = tuple[int, int]  # width, height


def decode_image(
    data: bytes, field: str, limits: Limits, ground: str = "white"
) -> tuple[Image.Image, _Size, list[Note]]:
    """An RGB picture out of a PNG, JPEG or WebP file.

    A JPEG that is larger than can be drawn is decoded at a half, a quarter or an eighth of its size, as long
    as that is not below the size to draw.

    Args:
        ground: the colour behind transparent parts.

    Returns:
        The picture, the size that it has in the file (upright), and what was changed on the way.

    Raises:
        Rejected: `invalid_image`, naming the field.
    """
    whole = read = (0, 0)

    def shrink(file: Image.Image) -> None:
        nonlocal whole, read
        whole, scale = file.size, _scale(file.size, limits)
        file.draft(None, (math.ceil(file.width * scale), math.ceil(file.height * scale)))
        read = file.size

    with pictures.open_picture(data, field, limits, before_load=shrink) as (picture, notes):
        turned = picture.size != read
        return _flatten(picture, field, False, notes, ground), whole[::-1] if turned else whole, notes


def decode_mask(data: bytes, field: str, limits: Limits) -> tuple[Image.Image, list[Note]]:
    """A mask in one channel (L), and what was changed on the way. Raises `Rejected` that names the field."""
    with pictures.open_picture(data, field, limits) as (picture, notes):
        return _flatten(picture, field, True, notes, "black"), notes


def decode_control(
    data: bytes, field: str, limits: Limits, size: tuple[int, ...]
) -> tuple[Image.Image, list[Note]]:
    """A control picture in the size of the picture to draw, on black, and what was changed on the way.

    Of another shape it is scaled until it covers the picture, and cut to its middle. Raises `Rejected`.
    """
    width, height = size
    image, whole, notes = decode_image(data, field, limits, "black")
    if whole != size:
        text = f"{field} was {whole[0]} x {whole[1]}; scaled to cover the drawn {width} x {height}, and cut to it"
        notes.append(Note(code="control_resized", message=text, field=field))
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return image, notes


def decode_reference(data: bytes, field: str, limits: Limits) -> tuple[Image.Image, list[Note]]:
    """A picture that a model looks at, in its own size or the largest within the limits. Raises `Rejected`."""
    image, whole, notes = decode_image(data, field, limits)
    if (scale := _scale(whole, limits)) < 1:
        width, height = (max(1, int(side * scale)) for side in whole)
        text = f"{field} was {whole[0]} x {whole[1]}; read at {width} x {height}"
        notes.append(Note(code="image_resized", message=text, field=field))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image, notes


def _flatten(picture: Image.Image, field: str, mask: bool, notes: list[Note], ground: str) -> Image.Image:
    """The picture without its alpha channel, in RGB (a mask: L)."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        if mask:
            _expect_white_paint(layered, field)
        if layered.getchannel("A").getextrema() != (255, 255):
            text = f"{field}: transparent parts were put on {ground}"
            notes.append(Note(code="flattened", message=text, field=field))
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, ground), layered)
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
    image: Image.Image,
    mask: Image.Image | None,
    limits: Limits,
    whole: _Size | None = None,
    multiple: int = SIZE_MULTIPLE,
    field: str = "image",
) -> tuple[Image.Image, Image.Image | None, list[Note]]:
    """Bring a picture to a size that can be drawn, and its mask to the picture's.

    Larger than the limits: scaled down. Not in the multiples that the model draws: the edges are cut evenly, and
    no pixel in between changes. Each change is a note.

    Args:
        whole: the picture's size in its file, if it was decoded at a smaller one.
        multiple: pixels that the model's widths and heights are multiples of.
        field: of the picture, as the request names it.

    Raises:
        Rejected: less than one multiple is left on a side.
    """
    notes: list[Note] = []
    width, height = whole = whole or image.size
    scale, wanted = _scale(whole, limits), drawn_size(whole, limits, multiple, field)
    if mask is not None and mask.size != whole:
        text = f"mask_image was {mask.width} x {mask.height}; resized to the image's {width} x {height}"
        notes.append(Note(code="mask_resized", message=text, field="mask_image"))
        mask = mask.resize(whole, Image.Resampling.NEAREST)
    if wanted != whole:
        text = f"{field} was {width} x {height}; drawn at {wanted[0]} x {wanted[1]}"
        if scale < 1 and scale == _by_area(whole, limits):
            text += f" (at most {limits.max_pixels:,} pixels are drawn with this model)"
        notes.append(Note(code="image_resized", message=text, field=field))
        image = _to_size(image, wanted, scale < 1, Image.Resampling.LANCZOS)
        mask = _to_size(mask, wanted, scale < 1, Image.Resampling.NEAREST) if mask else None
    return image, mask, notes


def drawn_size(size: _Size, limits: Limits, multiple: int, field: str = "image") -> _Size:
    """The width and height at which a picture of this size is drawn.

    Raises:
        Rejected: less than `multiple` pixels are left on a side.
    """
    scale = _scale(size, limits)
    width, height = (int(side * scale) // multiple * multiple for side in size)
    if 0 in (width, height):
        text = f"is {size[0]} x {size[1]}; at least {multiple} x {multiple} pixels can be drawn"
        raise Rejected.of_field(field, text, pictures.INVALID)
    return width, height


def _scale(size: _Size, limits: Limits) -> float:
    """How much smaller a picture of this size must become; at most 1."""
    return min(1.0, limits.max_side / max(size), _by_area(size, limits))


def _by_area(size: _Size, limits: Limits) -> float:
    return math.sqrt(limits.max_pixels / (size[0] * size[1]))


def mask_notes(mask: Image.Image) -> list[Note]:
    """Where a mask asks for something else than white and black do: pipelines repaint what is brighter than half."""
    counts = mask.histogram()
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
