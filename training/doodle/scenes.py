"""What doodle's pictures show: a few flat shapes on a plain background, and the sentence that says so.

A *scene* is the truth behind one training picture: the drawing, its caption and the judge's
expectation all come from it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 128  # pixels, doodle's native width and height
_OVERSAMPLING = 4  # drawn this many times larger, then averaged down: smooth edges

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 210),
    "purple": (140, 60, 180),
    "pink": (245, 150, 190),
    "white": (250, 250, 250),
    "black": (25, 25, 25),
    "gray": (128, 128, 128),
}
KINDS = ("circle", "square", "triangle", "star", "heart", "ring")
_OFTEN = (2, 2, 2, 3, 2, 3)  # lots of each kind in a pair: thin tips and small holes are hardest
PLACES = {"on the left": (-28, 0), "on the right": (28, 0), "at the top": (0, -28), "at the bottom": (0, 28)}

#: Pairs that a person takes for each other at a glance; never one on the other.
CONFUSABLE = {
    frozenset(pair)
    for pair in (
        ("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("yellow", "white"),
        ("pink", "white"), ("red", "pink"), ("purple", "gray"), ("pink", "orange"), ("green", "gray"),
        ("pink", "gray"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One flat figure."""

    kind: str
    colour: str
    x: float  # pixels, centre
    y: float  # pixels, centre
    radius: float  # pixels


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's truth: its background, its shapes in reading order, its caption."""

    background: str
    shapes: tuple[Shape, ...]
    caption: str


def outline(kind: str) -> list[tuple[float, float]]:
    """The polygon of a kind around the origin, y downwards, reaching about 1 from the centre."""
    if kind == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if kind == "triangle":
        return [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)]
    if kind == "star":
        spokes = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
        return [(1.05 * r * math.sin(a), -1.05 * r * math.cos(a)) for r, a in spokes]
    if kind == "heart":
        angles = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                16 * math.sin(a) ** 3 / 16.5,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) + 2) / 16.5,
            )
            for a in angles
        ]
    angles = [2 * math.pi * i / 72 for i in range(72)]
    return [(math.cos(a), math.sin(a)) for a in angles]  # circle, and the outer edge of a ring


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as a SIDE x SIDE RGB picture."""
    size, k = SIDE * _OVERSAMPLING, _OVERSAMPLING
    picture = Image.new("RGB", (size, size), PALETTE[scene.background])
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        points = [
            (k * (shape.x + shape.radius * px), k * (shape.y + shape.radius * py))
            for px, py in outline(shape.kind)
        ]
        pen.polygon(points, fill=PALETTE[shape.colour])
        if shape.kind == "ring":
            hole = 0.55 * shape.radius
            box = [k * (shape.x - hole), k * (shape.y - hole), k * (shape.x + hole), k * (shape.y + hole)]
            pen.ellipse(box, fill=PALETTE[scene.background])
    return picture.reduce(k)


def colours_for(background: str) -> list[str]:
    """The colours that stand out on a background."""
    return [c for c in PALETTE if c != background and frozenset((c, background)) not in CONFUSABLE]


def sample(rng: random.Random) -> Scene:
    """Draw lots for one scene: three in ten show one shape, the others two, which are harder."""
    background = rng.choice(list(PALETTE))
    return _one(rng, background) if rng.random() < 0.3 else _two(rng, background)


def _one(rng: random.Random, background: str) -> Scene:
    kind, colour = rng.choice(KINDS), rng.choice(colours_for(background))
    size = rng.choices(["", "small", "large"], [0.6, 0.2, 0.2])[0]
    low, high = {"": (32, 42), "small": (18, 24), "large": (48, 56)}[size]
    place = rng.choice(list(PLACES)) if size != "large" and rng.random() < 0.2 else ""
    dx, dy = PLACES.get(place, (0, 0))
    radius = rng.uniform(low, high) * (0.8 if place and not size else 1.0)
    slack = min(8.0, SIDE / 2 - radius - 4)
    shape = Shape(
        kind,
        colour,
        SIDE / 2 + dx + rng.uniform(-slack, slack),
        SIDE / 2 + dy + rng.uniform(-slack, slack),
        radius,
    )
    said_size = size if rng.random() < 0.85 else ""
    said_colour = colour if rng.random() < 0.9 else ""
    said_kind = kind if rng.random() < 0.93 else "shape"
    words = " ".join(w for w in (said_size, said_colour, said_kind, place) if w)
    ground = f" on a {background} background" if rng.random() < 0.9 else ""
    return Scene(background, (shape,), _article(rng) + words + ground)


def _two(rng: random.Random, background: str) -> Scene:
    first, second = (_companion(rng, background) for _ in range(2))
    upright = rng.random() < 0.25
    along, across = 30.0, 6.0
    shapes = []
    for sign, (kind, colour) in ((-1, first), (1, second)):
        near, far = rng.uniform(-4, 4) + sign * along, rng.uniform(-across, across)
        x, y = (far, near) if upright else (near, far)
        shapes.append(Shape(kind, colour, SIDE / 2 + x, SIDE / 2 + y, rng.uniform(20, 25)))
    link = "above" if upright else rng.choice(["and", "and", "next to"])
    ground = f" on a {background} background" if rng.random() < 0.9 else ""
    caption = f"a {first[1]} {first[0]} {link} a {second[1]} {second[0]}{ground}"
    return Scene(background, tuple(shapes), caption)


def _companion(rng: random.Random, background: str) -> tuple[str, str]:
    (kind,) = rng.choices(KINDS, _OFTEN)
    return kind, rng.choice(colours_for(background))


def _article(rng: random.Random) -> str:
    return "a " if rng.random() < 0.9 else ""


#: Every word a caption can hold; the tokenizer has one entry for each.
WORDS = sorted(
    {
        *PALETTE, *KINDS, "shape", "small", "large", "background", "and", "next", "to", "above",
        "on", "a", "an", "the", "at", "left", "right", "top", "bottom", "of", "picture", "big", "with",
    }
)  # fmt: skip
