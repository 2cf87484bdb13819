"""The ControlNets of one model in memory, and the pipelines that ask them.

A ControlNet is a second module that a pipeline calls at every step, before its UNet. It has a stand-in, too, so that
the calls of several images meet in it. How strongly it acts is multiplied into each image's own rows afterwards, so
images with different scales share its calls; where it does not act, it is not called.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.loading.libraries import library
from consumer.engine.stand_in import StandIn
from infra.models.addons.controlnets import check, weights_in
from infra.models.families import base_class
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from consumer.engine.loading.guides import Host
    from consumer.renderer.protocol import Control

#: Of a ControlNet's config, what must be as in the UNet whose layers it feeds.
_SAME = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")


class Controls:
    """Several ControlNets in place of a pipeline's own, as diffusers' MultiControlNetModel."""

    def __init__(self, nets: list[Any], dtype: torch.dtype) -> None:
        self.nets = nets
        self.dtype = dtype

    @property  # type: ignore[misc]  # typeshed calls it an attribute
    def __class__(self) -> type:  # pipelines ask for it
        kind: type = library("diffusers").MultiControlNetModel
        return kind

    @property
    def device(self) -> torch.device:
        device: torch.device = self.nets[0].device
        return device

    def modules(self) -> Iterator[Any]:
        """Only itself: pipelines search every layer for hooks."""
        yield self

    def to(self, *_args: Any, **_kwargs: Any) -> Controls:
        """Stay: many images share the real modules."""
        return self

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: Any,
        *,
        controlnet_cond: list[torch.Tensor],
        conditioning_scale: list[float],
        **given: Any,
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """What the nets add to each level of the UNet, summed; (None, None) where none acts at this step."""
        down: list[torch.Tensor] | None = None
        mid: torch.Tensor | None = None
        for net, picture, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True):
            if not scale and not given.get("guess_mode"):  # that one needs numbers, if only zeros
                continue
            levels, middle = net(sample, timestep, controlnet_cond=picture, **given)
            levels, middle = [level * scale for level in levels], middle * scale
            down = levels if down is None else [a + b for a, b in zip(down, levels, strict=True)]
            mid = middle if mid is None else mid + middle
        return down, mid


class ControlNets:
    """Those that are loaded for one model, by registered name."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loaded: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}  # bytes

    def check(self, controls: Collection[Control]) -> None:
        """Refuse unknown ones. Raises `Rejected`."""
        for place, name in _names(controls):
            self._host.addons.controlnet(name, _field(place))

    def needed(self, controls: Collection[Control]) -> int:
        """Bytes of those that must be loaded. Raises as `ensure` does."""
        missing = {name: place for place, name in _names(controls) if name not in self._loaded}
        for name, place in missing.items():
            if name not in self._sizes:  # it is asked for at every step while the ControlNet waits for room
                self._sizes[name] = check(name, self._folder(name, place)) * self._host.dtype.itemsize
        return sum(self._sizes[name] for name in missing)

    def ensure(self, controls: Collection[Control]) -> None:
        """Load what is not loaded yet.

        Raises:
            Rejected: one is unknown, or does not fit this model.
            ModelUnavailable: its weights are not available here now.
        """
        for place, name in _names(controls):
            if name not in self._loaded:
                self._loaded[name] = self._load(name, place, self._folder(name, place))

    def around(self, template: Any, controls: Collection[Control], *, plain: bool = False) -> Any:
        """A copy of a pipeline with these ControlNets; `plain`: with the real modules, and diffusers' own container."""
        nets = [self._loaded[control.name] for control in controls]
        pipe = copy.copy(template)
        if plain:
            vars(pipe)["controlnet"] = library("diffusers").MultiControlNetModel(nets)
        else:
            vars(pipe)["controlnet"] = Controls([StandIn(net) for net in nets], self._host.dtype)
        return pipe

    def _folder(self, name: str, place: int) -> Path:
        known = self._host.addons.controlnet(name, _field(place))
        return known.folder(offline=self._host.offline, cache=self._host.cache)

    def _load(self, name: str, place: int, folder: Path) -> Any:
        kind = library("diffusers").ControlNetModel
        config = kind.load_config(folder, local_files_only=True)
        for key in _SAME:
            theirs, ours = config.get(key), self._host.unet.config.get(key)
            if _listed(theirs) != _listed(ours):
                text = (
                    f"names ControlNet {name}, which does not fit: its {key} is {theirs}, the model's {ours}"
                )
                raise Rejected.of_field(_field(place), text, "unsupported")
        only_half = all(".fp16" in file.name for file in weights_in(folder))
        net = kind.from_pretrained(
            str(folder),
            dtype=self._host.dtype,
            use_safetensors=True,
            local_files_only=True,
            variant="fp16" if only_half else None,
        )
        net.eval().requires_grad_(False)
        net.to(memory_format=torch.channels_last)
        self._host.take(net)
        return net


def classes_with_controls(pipes: Mapping[str, Any]) -> dict[str, Any]:
    """By task: diffusers' class that draws as a pipeline does, and asks ControlNets; where there is one."""
    found = {}
    for task, pipe in pipes.items():
        start = base_class(type(pipe).__name__).removesuffix("Pipeline")
        name = type(pipe).__name__.replace(start, f"{start}ControlNet")
        if (kind := getattr(library("diffusers"), name, None)) is not None:
            found[task] = kind
    return found


def _names(controls: Collection[Control]) -> list[tuple[int, str]]:
    return [(place, control.name) for place, control in enumerate(controls)]


def _field(place: int) -> str:
    return f"controlnet.{place}.name"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
