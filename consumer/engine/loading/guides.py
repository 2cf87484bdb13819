"""The ControlNets and IP-Adapters of one loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from consumer.engine.devices import place
from consumer.engine.loading.controlnets import ControlNets, classes_with_controls
from consumer.engine.loading.ip_adapters import IpAdapters
from consumer.engine.loading.templates import around, with_stand_ins
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from consumer.engine.loading.registry import ModelRegistry
    from consumer.renderer.protocol import ImageTask
    from infra.models.addons.known import Addons
    from infra.models.families import Family


@dataclass(frozen=True, slots=True)
class Host:
    """A loaded model, as its addons see it."""

    addons: Addons
    unet: Any
    modules: list[Any]  # of the model; what is loaded is added, so that it counts and goes with the model
    place: Callable[[list[Any]], None]  # brings modules to the device
    cache: Path | None  # of downloads; None: the hub library's own
    offline: bool

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes; it may keep its weights in less."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    def take(self, module: Any) -> None:
        """Bring a loaded module to the device, and keep it with the model."""
        self.place([module])
        self.modules.append(module)


@dataclass(eq=False)
class Guides:
    """Of one loaded model."""

    label: str  # of its family
    controlnets: ControlNets
    ip_adapters: IpAdapters
    templates: Mapping[str, Any]  # task: a pipeline with ControlNets whose models are stand-ins
    plain: Mapping[str, Any]  # task: the same with the real models
    unet: bool  # whether the denoiser is one, so that IP-Adapters fit

    @classmethod
    def of(
        cls,
        registry: ModelRegistry,
        denoiser: Any,
        plain: Mapping[str, Any],
        family: Family,
        modules: list[Any],
    ) -> Self:
        """What may guide the images of a model; nothing of it is loaded yet.

        Args:
            plain: the model's pipelines by task.
            modules: of the model; what is loaded for it is added.
        """
        addons = registry.cards.addons

        def onto_device(more: list[Any]) -> None:
            place(more, registry.device, registry.offloading if registry.offload else None)

        kinds = classes_with_controls(plain) if family.controlnets and addons.controlnets else {}
        controlled = {task: around(kind, plain[task]) for task, kind in kinds.items()}
        host = Host(addons, denoiser, modules, onto_device, registry.cache, registry.offline)
        return cls(
            family.label,
            ControlNets(host),
            IpAdapters(host),
            {task: with_stand_ins(one, family.layers) for task, one in controlled.items()},
            controlled,
            family.denoiser == "unet",
        )

    def needed(self, task: ImageTask) -> int:
        """Bytes of what a task needs and is not in memory. Raises as `ensure` does."""
        self._check(task)
        return self.controlnets.needed(task.controls) + self.ip_adapters.needed(task.ip_adapter)

    def ensure(self, task: ImageTask) -> None:
        """Load what a task needs.

        Raises:
            Rejected: it is unknown, or does not fit the model.
            ModelUnavailable: it is not available here now.
        """
        self.controlnets.ensure(task.controls)
        self.ip_adapters.ensure(task.ip_adapter)

    def around(self, template: Any, task: ImageTask, *, plain: bool = False) -> Any:
        """The pipeline that a task is drawn with.

        Args:
            template: of the model for this task, without ControlNets.
            plain: with the real models instead of stand-ins.
        """
        if not task.controls:
            return template
        templates = self.plain if plain else self.templates
        return self.controlnets.around(templates[task.task], task.controls, plain=plain)

    def _check(self, task: ImageTask) -> None:
        """Refuse what diffusers has no pipeline for, and unknown ControlNets."""
        self.controlnets.check(task.controls)
        if task.controls and task.task not in self.templates:
            text = f"cannot guide {task.task} with a model of {self.label}; leave it out, or use a model of SD or SDXL"
            raise Rejected.of_field("controlnet", text, "unsupported")
        if task.ip_adapter is not None and not self.unet:
            text = f"cannot guide a model of {self.label}; leave it out, or use a model of SD or SDXL"
            raise Rejected.of_field("ip_adapter", text, "unsupported")
