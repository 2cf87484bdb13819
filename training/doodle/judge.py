"""Says what a doodle picture shows, by rules alone: background, shapes, colours, places.

The judge scores 100 % on true drawings before it judges anybody else (see the tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.doodle.scenes import KINDS, PALETTE, SIDE, Scene, Shape, draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FAR = 38.0  # CIE Lab distance at which a pixel no longer belongs to the background
_SMALLEST = 120  # pixels of a shape; less is a speck
_GRID = 32  # templates are compared on _GRID x _GRID cells


@dataclass(frozen=True, slots=True)
class Seen:
    """One shape that the judge found."""

    kind: str
    colour: str
    x: float  # pixels, centre of its bounding box
    y: float  # pixels
    likeness: float  # overlap with the template, 0 to 1
    area: int  # pixels


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a picture shows: the background's colour, and its shapes from left to right."""

    background: str
    shapes: tuple[Seen, ...]


def judge(picture: Image.Image) -> Verdict:
    """Describe a SIDE x SIDE RGB picture."""
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))
    rim = np.concatenate(
        [pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, :4].reshape(-1, 3)]
    )
    ground = np.median(rim, axis=0)
    different = np.linalg.norm(_lab(pixels) - _lab(ground), axis=-1) > _FAR
    seen = [_describe(mask, pixels) for mask in _pieces(different)]
    return Verdict(_nearest_colour(ground), tuple(sorted(seen, key=lambda s: s.x)))


def _describe(mask: NDArray[np.bool_], pixels: NDArray[np.uint8]) -> Seen:
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    cut = Image.fromarray(mask).crop(box)
    shape = np.asarray(cut.convert("L").resize((_GRID, _GRID), Image.Resampling.BOX), float) / 255
    likeness = {kind: _overlap(shape, template) for kind, template in _templates().items()}
    kind = max(likeness, key=lambda k: likeness[k])
    inner = _shrink(mask)
    colour = np.median(pixels[inner if inner.any() else mask], axis=0)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return Seen(kind, _nearest_colour(colour), *centre, likeness[kind], int(mask.sum()))


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two coverage maps in [0, 1]."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _shrink(mask: NDArray[np.bool_], by: int = 2) -> NDArray[np.bool_]:
    """Leave out the rim, whose pixels are mixtures."""
    for _ in range(by):
        mask = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    return mask


def _pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected pieces of at least _SMALLEST pixels, each grown from one of its pixels."""
    left, found = mask.copy(), []
    while left.any():
        piece = np.zeros_like(mask)
        piece.flat[left.argmax()] = True
        size = 0
        while size != (size := int(piece.sum())):
            for axis in (0, 1):
                for step in (1, -1):
                    piece |= _moved(piece, step, axis) & left
        if size >= _SMALLEST:
            found.append(piece)
        left &= ~piece
    return found


def _moved(mask: NDArray[np.bool_], step: int, axis: int) -> NDArray[np.bool_]:
    """Shift by one pixel; what enters at the edge is False."""
    shifted = np.roll(mask, step, axis)
    edge: list[int | slice] = [slice(None), slice(None)]
    edge[axis] = 0 if step > 0 else -1
    shifted[tuple(edge)] = False
    return shifted


@cache
def _templates() -> dict[str, NDArray[np.float64]]:
    """Each kind's coverage of its own bounding box."""
    found = {}
    for kind in KINDS:
        picture = np.asarray(
            draw(Scene("white", (Shape(kind, "black", SIDE / 2, SIDE / 2, 50),), "")).convert("L")
        )
        mask = picture < 128
        rows, columns = np.nonzero(mask)
        cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        size = (_GRID, _GRID)
        found[kind] = (
            np.asarray(Image.fromarray(cut).convert("L").resize(size, Image.Resampling.BOX), float) / 255
        )
    return found


def _nearest_colour(rgb: NDArray[np.floating]) -> str:
    names = list(PALETTE)
    distances = np.linalg.norm(_lab(np.array(list(PALETTE.values()))) - _lab(rgb), axis=-1)
    return names[int(distances.argmin())]


def _lab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """sRGB in 0..255 to CIE 1976 L*a*b* under D65 (CIE 15:2004)."""
    linear = np.asarray(rgb, float) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
