"""The work of requests, counted in rows and steps, which is exact; nothing here is measured.

One image without guidance is one row in each UNet call, one with guidance two. So a request's work is its *row-steps*:
images x UNet calls x rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from schemas import samplers
from schemas.errors import Rejected

if TYPE_CHECKING:
    from schemas.plan import Plan

_TWO_CALLS = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")  # a step, but for the last one
_ONE_MORE = ("PNDM",)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one request asks of a device."""

    model: str
    pixels: int  # of each image
    images: int
    calls: int  # of the UNet, for each image
    rows: int  # of each image in a call
    then: Piece | None = None  # what the images need after that: another model, or a larger size

    @property
    def row_steps(self) -> int:
        return sum(one.images * one.calls * one.rows for one in self.passes())

    def passes(self) -> Iterator[Piece]:
        """Each part by itself, in order."""
        yield replace(self, then=None)
        if self.then is not None:
            yield from self.then.passes()


@dataclass
class Work:
    """The work of many requests. `pieces` has a number of requests for each kind of piece."""

    requests: float = 0
    pieces: dict[Piece, float] = field(default_factory=dict)

    def add(self, piece: Piece | None, requests: float = 1) -> None:
        """Add requests; None for those that need no device."""
        self.requests += requests
        if piece is not None:
            self.pieces[piece] = self.pieces.get(piece, 0) + requests

    @classmethod
    def of(cls, several: Iterable[Self]) -> Self:
        """All of them together."""
        whole = cls()
        for work in several:
            whole.requests += work.requests
            for piece, count in work.pieces.items():
                whole.pieces[piece] = whole.pieces.get(piece, 0) + count
        return whole

    def times(self, factor: float) -> Work:
        """The same mix, more or less of it."""
        pieces = {piece: count * factor for piece, count in self.pieces.items()}
        return Work(self.requests * factor, pieces)

    def images(self) -> float:
        return sum(piece.images * count for piece, count in self.pieces.items())

    def row_steps(self) -> float:
        return sum(piece.row_steps * count for piece, count in self.pieces.items())

    def kinds(self) -> Iterator[tuple[tuple[str, int], Work]]:
        """The work of each model and size, most first. An image of two passes counts in each."""
        kinds: dict[tuple[str, int], Work] = {}
        for piece, count in self.pieces.items():
            for one in piece.passes():
                kinds.setdefault((one.model, one.pixels), Work()).add(one, count)
        yield from sorted(kinds.items(), key=lambda kind: -kind[1].row_steps())


def piece_of(plan: Plan, size: tuple[int, int]) -> Piece:
    """The work of a plan.

    Args:
        size: (width, height) in pixels, where the plan leaves it to the picture.
    """
    width, height = plan.width or size[0], plan.height or size[1]
    model = plan.model + (f"@{plan.model_version}" if plan.model_version else "")
    calls = unet_calls(plan.scheduler, plan.steps, plan.strength)
    images, rows = len(plan.seeds), 2 if plan.cfg_scale > 1 else 1
    then, upscale, refiner = None, plan.upscale, plan.refiner
    if upscale is not None:
        larger = math.prod(upscale.size(width, height, plan.model, 1))
        again = unet_calls(plan.scheduler, upscale.steps or plan.steps, upscale.strength)
        then = Piece(model, larger, images, again, rows)
    if refiner is not None:
        left = calls - max(1, min(calls - 1, round(plan.steps * (1 - refiner.at))))
        then = Piece(refiner.reference, width * height, images, calls - left, rows, then)
        calls = left
    return Piece(model, width * height, images, calls, rows, then)


def unet_calls(scheduler: str, steps: int, strength: float | None) -> int:
    """How often one image calls the UNet.

    Args:
        scheduler: canonical name.
        strength: of a request with a picture, which skips the first steps; None without one.

    Raises:
        Rejected: no step is left.
    """
    taken = steps if strength is None else min(int(steps * strength), steps)
    if taken < 1:
        text = f"is {strength:g}, which leaves none of {steps} steps; give more of either"
        raise Rejected.of_field("strength", text)
    name = samplers.resolve(scheduler).class_name.removesuffix("Scheduler")
    if name in _TWO_CALLS:
        return 2 * taken - 1
    return taken + 1 if name in _ONE_MORE else taken
