"""What the worker's parent and its renderer child say to each other. No torch here.

An *image task* is one image of one request, with everything resolved: the child needs nothing
else to draw it. Pictures travel as raw RGB, so that the child never parses a file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STICKY = 75  # exit status of a child whose device is lost


@dataclass(frozen=True, slots=True)
class RawPicture:
    """Decoded pixels: `width * height * channels` bytes, rows from the top; channels 3 (RGB) or 1 (L)."""

    width: int
    height: int
    channels: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA by its registered name, and how strongly it acts."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image to draw.

    `image` and `mask` (white is repainted) are already resized to width x height.
    """

    request: str  # the request's id
    index: int  # which image of the request, from 0
    task: str  # text2img | img2img | inpainting
    model: str  # registered name
    prompt: str
    negative_prompt: str | None
    width: int  # pixels, multiple of 8
    height: int  # pixels, multiple of 8
    steps: int
    cfg_scale: float
    seed: int  # of this image, in [0, 2**63)
    scheduler: str  # canonical name, see consumer/schedulers.py
    strength: float | None = None  # img2img and inpainting, in (0, 1]
    clip_skip: int | None = None  # A1111's counting: 1 is none
    loras: tuple[Lora, ...] = ()
    image: RawPicture | None = None
    mask: RawPicture | None = None
    solo: bool = False  # share no UNet call with another request
    preview: bool = False  # somebody watches: tell each image's first step at once, and how it looks


# What the child says ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The child can take tasks."""

    device: str  # such as "cpu" or "cuda:0 NVIDIA H100"
    dtype: str
    versions: dict[str, str]  # torch, diffusers, transformers, ...


@dataclass(frozen=True, slots=True)
class Stepped:
    """The device made progress: sent after each device call, at most a few times a second.

    `steps` maps (request, index) to (steps done, steps in all), `previews` to a small picture of how
    the image looks now, now and then and only where a task asks for it.
    """

    calls: int  # device calls since the child started
    steps: dict[tuple[str, int], tuple[int, int]]
    previews: dict[tuple[str, int], RawPicture] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image is finished."""

    request: str
    index: int
    picture: RawPicture
    warnings: tuple[tuple[str, str], ...]  # (code, message), such as ("prompt_cut", "...")
    model: dict[str, str]  # name, revision, source, licence, dtype
    seconds: float  # from the task's first device call to now
    calls: int  # device calls it took part in


@dataclass(frozen=True, slots=True)
class Undrawable:
    """An image cannot be drawn; `retry` says whether another attempt could help."""

    request: str
    index: int
    code: str  # a `schemas.result.FailureCode`
    message: str
    retry: bool
    field: str | None = None


Event = Ready | Stepped | Drawn | Undrawable
