"""Aspect buckets: the sizes at which a training's pictures are shown, and the cut that brings one to its size.

The pictures of a batch must have one size. A picture goes to the size whose shape is nearest to its own, so
that little is cut off. All sizes have about the area of the resolution squared.
"""

from __future__ import annotations

import math

from PIL import Image

_MOST_STRETCHED = 2.5  # the longer side of a bucket is at most this many times the shorter one


def sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The (width, height) of every bucket in pixels, from the tallest to the widest; the square is one of them.

    Args:
        resolution: the side of the square bucket; a multiple of `multiple`.
        multiple: what both sides must be divisible by: the VAE's scale times the denoiser's.
    """
    found = {(resolution, resolution)}
    side = resolution
    while side >= multiple:
        longer = resolution * resolution // side // multiple * multiple
        if longer <= _MOST_STRETCHED * side:
            found |= {(side, longer), (longer, side)}
        side -= multiple
    return tuple(sorted(found, key=lambda size: size[0] / size[1]))


def nearest(size: tuple[int, int], buckets: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The bucket whose ratio of width to height is nearest to that of `size`; of equals, the larger one."""
    shape = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (abs(math.log(b[0] / b[1]) - shape), -b[0] * b[1]))


def crop(image: Image.Image, size: tuple[int, int], *, x: float, y: float, flip: bool) -> Image.Image:
    """Scale a picture until it just covers `size`, cut `size` out of it, and mirror it if `flip` says so.

    Args:
        x, y: where the cut lies: 0 is the left or upper edge, 0.5 the middle, 1 the right or lower edge.
    """
    width, height = size
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    scaled = image if covering == image.size else image.resize(covering, Image.Resampling.LANCZOS)
    left, top = round(x * (covering[0] - width)), round(y * (covering[1] - height))
    cut = scaled.crop((left, top, left + width, top + height))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
