"""Previews: how an image in flight looks now, from its latents, without running the VAE.

A denoiser's input is a mixture of picture and noise, and its output separates them, so every step
gives an estimate of the finished latents. It is made of what the image's scheduler was given: there the output
has its pipeline's guidance and sign, whatever the family.

A VAE maps each cell of latents to a colour, nearly independently of its neighbours. That map is learned once for a
VAE, from one small *test card* that it encodes and decodes: a linear map, corrected by its error on the card's nearest
cells (a large VAE is almost linear, a small one is not). The image itself is not affected. Families whose `latents`
are "other" have no previews.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from consumer.engine import device_errors
from consumer.engine.loading.spelling import family
from consumer.renderer.protocol import Complaint, RawPicture
from infra.logs import redacted

if TYPE_CHECKING:
    from consumer.engine.in_flight import InFlight
    from consumer.engine.loading.registry import LoadedModel

_EVERY = 1.0  # seconds between two previews of a request
_SHARE = 0.02  # of all time that previews may take, once the budget is used up
_BUDGET = 0.1  # seconds of work that may be saved up
_LONGEST = 96  # pixels
_CARD = 192  # pixels a side
_NEAR = 0.15  # in latents of unit variance: the width of a card cell's influence


@dataclass(eq=False)
class Previews:
    """Makes the previews of one engine, rarely enough not to slow it down."""

    clock: Callable[[], float]
    make_way: Callable[[Any], None]  # with offload: makes room on the device for a module
    emit: Callable[[Complaint], None]
    _palettes: WeakKeyDictionary[LoadedModel, Palette | None] = field(default_factory=WeakKeyDictionary)
    _made: dict[str, float] = field(default_factory=dict)  # by request: when, within the last `_EVERY`
    _budget: float = _BUDGET  # seconds to spend
    _updated: float = 0.0  # when the budget was computed

    def due(self, images: Iterable[InFlight]) -> dict[tuple[str, int], RawPicture]:
        """New previews: of each request's first unfinished image, where the last preview is old enough.

        A failure ends the previews of that model, and never affects the image.

        Raises:
            RuntimeError: the device is lost.
        """
        first: dict[str, InFlight] = {}
        for image in sorted(images, key=lambda image: image.task.index):
            if image.task.preview and getattr(image.pipe.scheduler, "seen", None) is not None:
                first.setdefault(image.task.request, image)
        now = self.clock()
        self._budget = min(_BUDGET, self._budget + _SHARE * (now - self._updated))
        self._updated = now
        self._made = {request: at for request, at in self._made.items() if now - at < _EVERY}
        previews = {}
        for request, image in first.items():
            if request in self._made or self._budget <= 0:
                continue
            picture = self._try(image)
            if picture is not None:
                previews[image.name] = picture
                self._made[request] = now
        return previews

    def _try(self, image: InFlight) -> RawPicture | None:
        try:
            palette = self._palette(image)
            if palette is None:
                return None
            began = self.clock()
            picture = palette.paint(estimate(image))
            self._budget -= self.clock() - began
            return picture
        except Exception as error:
            if device_errors.is_sticky(error):
                raise
            self._palettes[image.model] = None
            self.emit(Complaint(f"no more previews of model {image.task.model!r}: {redacted(error)}"))
        finally:
            image.pipe.scheduler.seen = None
        device_errors.free_memory()  # outside `except`, where no traceback holds tensors
        return None

    def _palette(self, image: InFlight) -> Palette | None:
        if image.model not in self._palettes:
            pipe = next(iter(image.model.plain.values()))
            if family(pipe).latents == "other":
                self._palettes[image.model] = None
            else:
                self.make_way(pipe.vae)
                self._palettes[image.model] = Palette(pipe.vae, image.pipe.scheduler.seen[0].device)
        return self._palettes[image.model]


class Palette:
    """The map from a cell of latents to its colour, for one VAE."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        """Learn the map by one small encode and decode."""
        latents = vae.encode(_card().to(device, vae.dtype)).latent_dist.mode()
        picture = vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)
        cells = _cells((latents.float() - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor)
        colours = _cells(functional.adaptive_avg_pool2d(picture, latents.shape[-2:]))
        inputs = _with_one(cells)
        normal = inputs.T @ inputs + 1e-2 * torch.eye(inputs.shape[1], device=device)  # least squares, damped
        self._linear = torch.linalg.solve(normal, inputs.T @ colours)
        self._cells, self._errors = cells, colours - inputs @ self._linear
        if not bool(torch.isfinite(self._errors).all()):
            raise ValueError("the VAE turns the test card into numbers that are not finite")

    def paint(self, latents: torch.Tensor) -> RawPicture:
        """(1, channels, h, w) as a picture with one pixel for each cell, at most `_LONGEST` on a side."""
        height, width = latents.shape[-2:]
        if max(height, width) > _LONGEST:
            scale = _LONGEST / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
            latents = functional.interpolate(latents, size=(height, width), mode="area")
        cells = _cells(latents)
        near = torch.softmax(-torch.cdist(cells, self._cells).square() / (2 * _NEAR**2), dim=1)
        colours = _with_one(cells) @ self._linear + near @ self._errors
        levels = ((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return RawPicture(width, height, 3, levels.cpu().numpy().tobytes())


def estimate(image: InFlight) -> torch.Tensor:
    """The finished latents (1, channels, h, w), estimated from the last step of the image's scheduler.

    In flow matching the input at noise level s is (1 - s) * finished + s * noise, and the output noise - finished.
    For all other models, the UNet's input at timestep t is sqrt(a) * finished + sqrt(1 - a) * noise for every sampler,
    because that is what it was trained on; a is the scheduler's `alphas_cumprod` at t.

    Sources: Lipman and others 2022 (arXiv:2210.02747) for flow matching; Salimans and Ho 2022 (arXiv:2202.00512) for
    the v-prediction.
    """
    scheduler = image.pipe.scheduler
    latents, timestep, output = scheduler.seen
    latents, output = latents[-1:].float(), output.float()  # a UNet's input may be there twice, for guidance
    if hasattr(scheduler, "alphas_cumprod"):
        finished = _separated(scheduler, latents, float(timestep), output)
    else:
        finished = latents - float(scheduler.sigmas[scheduler.step_index - 1]) * output
    if family(image.pipe).latents == "packed":
        task, pipe = image.task, image.pipe
        return pipe._unpack_latents(finished, task.height, task.width, pipe.vae_scale_factor)
    return finished


def _separated(scheduler: Any, latents: torch.Tensor, timestep: float, output: torch.Tensor) -> torch.Tensor:
    alphas = scheduler.alphas_cumprod
    at = min(max(timestep, 0.0), len(alphas) - 1.0)  # some samplers use timesteps between two
    low, high = float(alphas[int(at)]), float(alphas[min(int(at) + 1, len(alphas) - 1)])
    a = min(max(low + (at - int(at)) * (high - low), 1e-4), 1.0)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return a**0.5 * latents - (1 - a) ** 0.5 * output
    if kind == "sample":
        return output
    return (latents - (1 - a) ** 0.5 * output) / a**0.5


def _card() -> torch.Tensor:
    """(1, 3, _CARD, _CARD) in [-1, 1]: patches of strong flat colours, black and white among soft ones."""
    rng = torch.Generator().manual_seed(1)

    def levels(channels: int, count: int) -> torch.Tensor:
        return ((torch.rand(1, channels, count, count, generator=rng) - 0.5) * 2.5 + 0.5).clamp(0, 1)

    def patches(colours: torch.Tensor, mode: str) -> torch.Tensor:
        return functional.interpolate(colours, size=_CARD, mode=mode).clamp(0, 1)

    soft, flat = patches(levels(3, 4), "bicubic"), levels(3, 3)
    kind = torch.randint(0, 4, (1, 1, 3, 3), generator=rng)
    flat = torch.where(kind == 0, 0.05, torch.where(kind == 1, 0.98, flat))
    return torch.where(patches(levels(1, 5), "nearest") > 0.5, soft, patches(flat, "nearest")) * 2 - 1


def _cells(planes: torch.Tensor) -> torch.Tensor:
    """(1, channels, h, w) to (h * w, channels)."""
    return planes[0].flatten(1).T.contiguous()


def _with_one(cells: torch.Tensor) -> torch.Tensor:
    return torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
