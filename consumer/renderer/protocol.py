"""The messages between the worker's parent process and its renderer child: one typed union. No torch here.

The parent sends `RendererSettings` once, then an `ImageTask` for each image that it wants, and a `Cancel`
for each request that it no longer wants. An image task is one image of one request with everything
resolved: the child needs nothing else to draw it. Pictures travel as raw RGB, so the child never
parses an image file.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

DEVICE_LOST = 75  # exit status of a child whose device is lost


class RawPicture(msgspec.Struct, frozen=True):
    """Decoded pixels: `width * height * channels` bytes, rows from the top; channels 3 (RGB) or 1 (L)."""

    width: int
    height: int
    channels: int
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != self.width * self.height * self.channels:
            raise ValueError(f"{len(self.data)} bytes for {self.width} x {self.height} x {self.channels}")

    def __repr__(self) -> str:
        return f"RawPicture({self.width}, {self.height}, {self.channels}, ...)"


class Lora(msgspec.Struct, frozen=True):
    """A LoRA by its registered name, and the weight that scales it."""

    name: str
    weight: float
    sha256: str = ""  # of its file when the request was planned; "" in plans of older workers
    path: str = ""  # of a published one: its file on this machine


class Control(msgspec.Struct, frozen=True):
    """A ControlNet by its registered name, and how it acts; its picture is the task's controlnet.<place>.image."""

    name: str
    scale: float
    start: float  # parts of the steps
    end: float


class IpAdapterChoice(msgspec.Struct, frozen=True):
    """An IP-Adapter by its registered name, and its strength; its picture is the task's ip_adapter.image."""

    name: str
    scale: float


class Enlarged(msgspec.Struct, frozen=True):
    """A second pass: the picture is enlarged to this size, and redrawn by the same model."""

    width: int  # pixels
    height: int  # pixels
    steps: int
    strength: float  # in (0, 1]


class SecondModel(msgspec.Struct, frozen=True):
    """A model that goes on where the first one stops."""

    model: str  # registered name, or name@version of a published one
    at: float  # share of the denoising, in (0, 1)
    folder: str = ""  # of a published one: its diffusers folder on this machine


# From the parent ------------------------------------------------------------------------------


class RendererSettings(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a child: what it serves, and how it uses its device."""

    kind: Literal["diffusers", "null"] = "diffusers"
    device: str = "cpu"
    dtype: str = "auto"
    attention: str = "auto"
    compile: str = "off"  # | regional | full
    compiled: str = ""  # folder where compiled code is kept
    offload: bool = False
    quantize: str = "off"  # | fp8
    max_rows: int = 16
    exact: bool = False
    measure: bool | None = (
        None  # find out how many rows pay, up to max_rows; None: on GPUs, outside exact mode
    )
    models: tuple[tuple[str, str], ...] = ()  # name and source, given by the operator
    loras: tuple[tuple[str, str], ...] = ()  # name and file
    controlnets: tuple[tuple[str, str], ...] = ()  # name and source
    ip_adapters: tuple[tuple[str, str], ...] = ()  # name and source
    memory_budget: int | None = None  # bytes of loaded models
    preload: str | None = None  # loaded before the child sends `Ready`
    preload_folder: str = ""  # of a published one: where its files are on this machine
    patience: float = 60.0  # seconds without progress while busy, or ten times the usual: the child hangs
    null: dict[str, Any] = {}  # settings of the null renderer, see `NullSettings`


class ImageTask(msgspec.Struct, frozen=True, tag=True):
    """One image to draw.

    `image` and `mask` (white is repainted) are already resized to width x height.
    """

    request: str  # the request's id
    index: int  # which image of the request, from 0
    task: str  # text2img | img2img | inpainting
    model: str  # registered name, or name@version of a published one
    prompt: str
    negative_prompt: str | None
    width: int  # pixels, multiple of 8
    height: int  # pixels, multiple of 8
    steps: int
    cfg_scale: float
    seed: int  # of this image, in [0, 2**63)
    scheduler: str  # canonical name, see schemas/samplers.py
    strength: float | None = None  # img2img and inpainting, in (0, 1]
    clip_skip: int | None = None  # A1111's counting: 1 skips nothing
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    ip_adapter: IpAdapterChoice | None = None
    image: RawPicture | None = None
    mask: RawPicture | None = None
    #: The request's other pictures by the fields that hold them, such as controlnet.0.image: those of a ControlNet have
    #: the size of the image, others their own.
    pictures: dict[str, RawPicture] = {}
    solo: bool = False  # shares no UNet call with another request
    folder: str = ""  # of a published model: its diffusers folder on this machine
    express: bool = False  # its author waits for it: it goes before what is not of the express lane
    preview: bool = False  # somebody watches: report the first step at once, and send previews
    weights: bool = False  # the prompts are written with weights, see schemas/text/prompts.py
    upscale: Enlarged | None = None
    refiner: SecondModel | None = None
    until: float | None = None  # of a pass that stops early: its share of the denoising, in (0, 1)
    since: float | None = None  # of a pass that goes on from latents: where in the denoising they are

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(width, height) of the picture, in pixels."""
        return (self.upscale.width, self.upscale.height) if self.upscale else (self.width, self.height)


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Draw no more images of this request."""

    request: str


# From the child -------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The child accepts tasks."""

    device: str  # such as "cpu" or "cuda:0 NVIDIA H100"
    dtype: str
    versions: dict[str, str]  # torch, diffusers, transformers, ...


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The child looks for a model, or loads it; either may take minutes."""

    name: str
    source: str


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A model is in memory."""

    name: str
    source: str
    dtype: str
    size: int  # bytes of its weights
    on_device: dict[str, int] = {}  # bytes by name of all models in memory, this one included
    probed: str = ""  # of a model that no table knows: whether its images share calls, and why


class Complaint(msgspec.Struct, frozen=True, tag=True):
    """Something failed that affects no image, such as previews."""

    text: str


class DeviceCall(msgspec.Struct, frozen=True):
    """One call of a model's UNet, VAE or text encoder, for metrics and estimates."""

    kind: str  # text | encode | unet | decode
    model: str
    pixels: int  # width * height of its first image, or of its largest where sizes share a call
    rows: int  # of images
    slots: int  # rows that it could have had
    seconds: float
    busy: (
        float  # seconds since the call before it ended, or since it began when there was nothing to do before
    )


class Stepped(msgspec.Struct, frozen=True, tag=True):
    """The device made progress: sent after a device call, at most a few times a second."""

    steps: dict[tuple[str, int], tuple[int, int]]  # by (request, index): steps done, steps in all
    #: Small pictures of how images look now; sent at intervals, for tasks that ask for them.
    previews: dict[tuple[str, int], RawPicture] = {}
    calls: tuple[DeviceCall, ...] = ()  # since the last report
    peak: int | None = None  # bytes of the device's memory, at most since the last report; None on a CPU


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """An image is finished."""

    request: str
    index: int
    picture: RawPicture
    warnings: tuple[tuple[str, str], ...]  # (code, message), such as ("prompt_cut", "...")
    model: dict[str, str]  # name, revision, source, licence, dtype
    seconds: float  # from the task's first device call to now
    refiner: dict[str, str] = {}  # the same as `model`, of the second model where there is one


class Undrawable(msgspec.Struct, frozen=True, tag=True):
    """An image cannot be drawn; `retry` says whether another attempt could help."""

    request: str
    index: int
    code: str  # a `schemas.result.FailureCode`
    message: str
    retry: bool
    field: str | None = None


Event = Ready | Stepped | Drawn | Undrawable
Message = RendererSettings | ImageTask | Cancel | Event | Loading | Loaded | Complaint
