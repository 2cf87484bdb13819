"""How an image in flight looks now, told from its latents without running the VAE.

What the UNet is shown is a mixture of picture and noise, and its answer tells them apart: so every
step holds a guess at the finished latents. A VAE gives each cell of them a colour, nearly by
itself. Which one is learned once for a VAE, from one small *card* that it encodes and decodes: a
linear map, corrected by what the map gets wrong on the card's nearest cells (a large VAE is almost
linear, a small one is not). Nothing here touches what the image is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from consumer.engine import device_errors
from consumer.renderer.protocol import Complaint, RawPicture
from infra.logs import redacted

if TYPE_CHECKING:
    from consumer.engine.in_flight import Image
    from consumer.engine.registry import LoadedModel
    from consumer.engine.stand_in import Call

_EVERY = 1.0  # seconds between two previews of a request
_SHARE = 0.02  # of the time that previews may take, once the savings are used up
_SAVINGS = 0.1  # seconds
_LONGEST = 96  # pixels
_CARD = 192  # pixels a side
_NEAR = 0.15  # in latents of unit variance: how far a cell of the card has a say


@dataclass(eq=False)
class Previews:
    """Makes the previews of one engine, seldom enough not to be felt."""

    clock: Callable[[], float]
    make_way: Callable[[Any], None]  # with offload: brings a module to the device
    emit: Callable[[Complaint], None]
    _palettes: WeakKeyDictionary[LoadedModel, Palette | None] = field(default_factory=WeakKeyDictionary)
    _made: dict[str, float] = field(default_factory=dict)  # request: when, if that was lately
    _saved: float = _SAVINGS  # seconds to spend
    _looked: float = 0.0

    def look(self, image: Image, call: Call, answer: Any) -> None:
        """Keep what a preview of the image can be made of, until its next step."""
        image.seen = (call.arguments["sample"], call.arguments["timestep"], answer[0])

    def due(self, images: Iterable[Image]) -> dict[tuple[str, int], RawPicture]:
        """Previews of the first unfinished image of each request that has waited for long enough.

        A failure costs the model its previews, and never the image.

        Raises:
            RuntimeError: the device is lost.
        """
        first: dict[str, Image] = {}
        for image in sorted(images, key=lambda image: image.task.index):
            if image.seen is not None:
                first.setdefault(image.task.request, image)
        now = self.clock()
        self._saved = min(_SAVINGS, self._saved + _SHARE * (now - self._looked))
        self._looked = now
        self._made = {request: at for request, at in self._made.items() if now - at < _EVERY}
        found = {}
        for request, image in first.items():
            if request in self._made or self._saved <= 0:
                continue
            picture = self._try(image)
            if picture is not None:
                found[image.name] = picture
                self._made[request] = now
        return found

    def _try(self, image: Image) -> RawPicture | None:
        try:
            palette = self._palette(image)
            if palette is None:
                return None
            began = self.clock()
            picture = palette.paint(finished(image, palette.channels))
            self._saved -= self.clock() - began
            return picture
        except Exception as error:
            if device_errors.is_sticky(error):
                raise
            self._palettes[image.model] = None
            self.emit(Complaint(f"no more previews of model {image.task.model!r}: {redacted(error)}"))
        finally:
            image.seen = None
        device_errors.free_memory()  # outside `except`, where no traceback holds tensors
        return None

    def _palette(self, image: Image) -> Palette | None:
        if image.model not in self._palettes:
            vae = next(iter(image.model.plain.values())).vae
            self.make_way(vae)
            self._palettes[image.model] = Palette(vae, image.seen[0].device)
        return self._palettes[image.model]


class Palette:
    """What colour one VAE gives a cell of latents."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        """Learn it by one small encode and decode."""
        latents = vae.encode(_card().to(device, vae.dtype)).latent_dist.mode()
        picture = vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)
        cells = _cells((latents.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
        colours = _cells(functional.adaptive_avg_pool2d(picture, latents.shape[-2:]))
        self.channels = cells.shape[1]
        known = _with_one(cells)
        normal = known.T @ known + 1e-2 * torch.eye(known.shape[1], device=device)
        self._linear = torch.linalg.solve(normal, known.T @ colours)
        self._cells, self._wrong = cells, colours - known @ self._linear
        if not bool(torch.isfinite(self._wrong).all()):
            raise ValueError("the VAE answers a test card with numbers that are not finite")

    def paint(self, latents: torch.Tensor) -> RawPicture:
        """(1, channels, h, w) as a picture with a pixel a cell, at most `_LONGEST` on a side."""
        height, width = latents.shape[-2:]
        if max(height, width) > _LONGEST:
            scale = _LONGEST / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
            latents = functional.interpolate(latents, size=(height, width), mode="area")
        cells = _cells(latents)
        near = torch.softmax(-torch.cdist(cells, self._cells).square() / (2 * _NEAR**2), dim=1)
        colours = _with_one(cells) @ self._linear + near @ self._wrong
        levels = ((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return RawPicture(width, height, 3, levels.cpu().numpy().tobytes())


def finished(image: Image, channels: int) -> torch.Tensor:
    """The finished latents (1, channels, h, w) as the image's last UNet call lets them be guessed.

    The UNet's sample at timestep t is sqrt(a) * finished + sqrt(1 - a) * noise for every sampler,
    because that is what it was trained on; a is the scheduler's `alphas_cumprod` at t.

    Source: Salimans and Ho 2022 (arXiv:2202.00512) for the v-prediction.
    """
    sample, timestep, output = image.seen
    sample, output = sample[-1:, :channels].float(), output.float()
    if len(output) == 2:  # guidance: without and with the prompt
        output = output[:1] + image.task.cfg_scale * (output[1:] - output[:1])
    scheduler = image.pipe.scheduler
    alphas = scheduler.alphas_cumprod
    at = min(max(float(timestep[-1]), 0.0), len(alphas) - 1.0)  # some samplers stop between two
    low, high = float(alphas[int(at)]), float(alphas[min(int(at) + 1, len(alphas) - 1)])
    a = min(max(low + (at - int(at)) * (high - low), 1e-4), 1.0)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return a**0.5 * sample - (1 - a) ** 0.5 * output
    if kind == "sample":
        return output
    return (sample - (1 - a) ** 0.5 * output) / a**0.5


def _card() -> torch.Tensor:
    """(1, 3, _CARD, _CARD) in [-1, 1]: patches of strong flat colours, black and white among soft ones."""
    dice = torch.Generator().manual_seed(1)

    def levels(channels: int, count: int) -> torch.Tensor:
        wide = (torch.rand(1, channels, count, count, generator=dice) - 0.5) * 2.5 + 0.5
        return wide.clamp(0, 1)

    def patches(colours: torch.Tensor, mode: str) -> torch.Tensor:
        return functional.interpolate(colours, size=_CARD, mode=mode).clamp(0, 1)

    soft, flat = patches(levels(3, 4), "bicubic"), levels(3, 3)
    kind = torch.randint(0, 4, (1, 1, 3, 3), generator=dice)
    flat = torch.where(kind == 0, 0.05, torch.where(kind == 1, 0.98, flat))
    return torch.where(patches(levels(1, 5), "nearest") > 0.5, soft, patches(flat, "nearest")) * 2 - 1


def _cells(planes: torch.Tensor) -> torch.Tensor:
    """(1, channels, h, w) to (h * w, channels)."""
    return planes[0].flatten(1).T.contiguous()


def _with_one(cells: torch.Tensor) -> torch.Tensor:
    return torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
