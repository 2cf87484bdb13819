"""The IP-Adapters of one model in memory: loaded at their first use, and switched between groups of rows.

An IP-Adapter replaces the processors of the UNet's cross attention, for everyone who uses the UNet. So they are swapped
in for the calls of the images that asked for one, and out again: all others run through what was there before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine import device_errors
from consumer.engine.loading.libraries import library
from consumer.engine.stand_in import StandIn
from infra.models.addons.ip_adapters import Files
from infra.models.addons.sources import elements
from schemas.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

    from consumer.engine.loading.guides import Host
    from consumer.renderer.protocol import IpAdapterChoice

_FIELD = "ip_adapter.name"


@dataclass(frozen=True, slots=True)
class _Loaded:
    files: Files
    encoder: Any
    projection: Any  # from the encoder's answer to what the processors read
    processors: tuple[tuple[Any, Any, Any], ...]  # attention layer, its own processor, the IP-Adapter's


class IpAdapters:
    """Those that are loaded for one model, and which one acts."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loaded: dict[str, _Loaded] = {}
        self._encoders: dict[Path, Any] = {}
        self._sizes: dict[str, int] = {}  # bytes
        self._active: IpAdapterChoice | None = None

    def needed(self, choice: IpAdapterChoice | None) -> int:
        """Bytes that must be loaded. Raises as `ensure` does."""
        if choice is None or choice.name in self._loaded:
            return 0
        if choice.name not in self._sizes:  # asked for at every step while the IP-Adapter waits for room
            files = self._files(choice)
            encoder = (
                [] if files.encoder in self._encoders else sorted(files.encoder.glob("*.safetensors"))[:1]
            )
            self._sizes[choice.name] = (
                sum(map(elements, (files.weights, *encoder))) * self._host.dtype.itemsize
            )
        return self._sizes[choice.name]

    def ensure(self, choice: IpAdapterChoice | None) -> None:
        """Load what is not loaded yet.

        Raises:
            Rejected: it is unknown, or does not fit this model.
            ModelUnavailable: its weights are not available here now.
        """
        if choice is not None and choice.name not in self._loaded:
            self._loaded[choice.name] = self._load(choice.name, self._files(choice))

    def switch(self, choice: IpAdapterChoice | None) -> None:
        """Let exactly this one act from the next device call on."""
        if choice == self._active:
            return
        before = self._loaded[self._active.name] if self._active else None
        after = self._loaded[choice.name] if choice else None
        if before is not None and before is not after:
            for layer, own, _ in before.processors:
                layer.set_processor(own)
            self._host.unet.encoder_hid_proj = None
        if choice is not None and after is not None:
            for layer, _, processor in after.processors:
                processor.scale = [choice.scale]
                layer.set_processor(processor)
            self._host.unet.encoder_hid_proj = after.projection
        self._active = choice

    def attach(self, pipe: Any, choice: IpAdapterChoice | None) -> None:
        """Give one image's pipeline what it needs to look at a picture."""
        if choice is None:
            return
        loaded = self._loaded[choice.name]
        size = loaded.encoder.config.image_size
        vars(pipe)["image_encoder"] = StandIn(loaded.encoder, is_text_encoder=True, layers=(-2,))
        vars(pipe)["feature_extractor"] = _processor()(size=size, crop_size=size)
        vars(pipe)["reads_tokens"] = loaded.files.reads_tokens

    def _files(self, choice: IpAdapterChoice) -> Files:
        known = self._host.addons.ip_adapter(choice.name)
        return known.files(offline=self._host.offline, cache=self._host.cache)

    def _load(self, name: str, files: Files) -> _Loaded:
        unet = self._host.unet
        if files.width != unet.config.cross_attention_dim:
            theirs, ours = files.width, unet.config.cross_attention_dim
            text = f"names IP-Adapter {name}, which does not fit: its UNets read text {theirs} wide, the model's {ours}"
            raise Rejected.of_field(_FIELD, text, "unsupported")
        self.switch(None)
        layers = [layer for layer in unet.modules() if hasattr(layer, "set_processor")]
        own = [layer.processor for layer in layers]
        state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
        for key, tensor in library("safetensors.torch").load_file(files.weights).items():
            part, _, inner = key.partition(".")
            state[part][inner] = tensor
        try:
            unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
            projection = unet.encoder_hid_proj
            changed = tuple(
                (layer, before, layer.processor)
                for layer, before in zip(layers, own, strict=True)
                if isinstance(layer.processor, torch.nn.Module)
            )
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            if device_errors.is_out_of_memory(error) or device_errors.is_sticky(error):
                raise
            text = f"names IP-Adapter {name}, which does not fit this model: {' '.join(str(error).split())[:300]}"
            raise Rejected.of_field(_FIELD, text, "unsupported") from error
        finally:
            for layer, before in zip(layers, own, strict=True):
                layer.set_processor(before)
            unet.encoder_hid_proj = None
        parts = torch.nn.ModuleList([projection, *(processor for *_, processor in changed)])
        # Not placed: with offload it moves with the UNet.
        parts.eval().requires_grad_(False).to(next(unet.parameters()).device)
        self._host.modules.append(parts)
        return _Loaded(files, self._encoder(files.encoder), projection, changed)

    def _encoder(self, folder: Path) -> Any:
        if folder not in self._encoders:
            encoder = library("transformers").CLIPVisionModelWithProjection.from_pretrained(
                str(folder), dtype=self._host.dtype, use_safetensors=True, local_files_only=True
            )
            encoder.eval().requires_grad_(False)
            self._host.take(encoder)
            self._encoders[folder] = encoder
        return self._encoders[folder]


def _processor() -> Any:
    """The class that brings a picture to an encoder's size: by Pillow, whatever else is installed."""
    transformers = library("transformers")
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def embeddings(pipe: Any, picture: Any, *, guided: bool) -> list[torch.Tensor]:
    """What a pipeline's image encoder says of a picture: without and with it where there is guidance.

    Args:
        pipe: prepared by `IpAdapters.attach`.
        picture: PIL.
    """
    seen, unseen = pipe.encode_image(picture, pipe._execution_device, 1, pipe.reads_tokens or None)
    return [torch.cat([unseen[None, :], seen[None, :]] if guided else [seen[None, :]])]
