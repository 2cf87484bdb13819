"""Makes an image ready to be drawn: its models in memory, its limits checked, a pipeline for each of its passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.admission import acting, batch_key
from consumer.engine.loading import pipelines, spelling
from consumer.engine.passes import Pass, models_of, passes_of
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from consumer.engine.loading.registry import LoadedModel, ModelRegistry
    from consumer.renderer.protocol import ImageTask, Lora


def make_ready(
    registry: ModelRegistry,
    make_scheduler: Callable[..., Any],
    task: ImageTask,
    others: Collection[ImageTask],
) -> tuple[list[Pass], list[tuple[str, str]]]:
    """The passes of an image, each with its pipeline, and what will be drawn otherwise than asked (code, message).

    All of its models are in memory afterwards, so that no pass waits for one.

    Args:
        others: passes of images in flight, whose models and LoRAs must stay.

    Raises:
        Rejected: a model is unknown or cannot do this; with the field.
        ModelUnavailable: a model is not available here.
    """
    tasks, names = passes_of(task), models_of(task)
    _check_budget(registry, names)
    in_use = {one.model for one in others} | set(names)
    loaded: dict[str, LoadedModel] = {}
    with torch.inference_mode(False):  # weights outlive this step: they must be ordinary tensors
        for name in names:
            try:
                loaded[name] = registry.get(name, in_use=in_use)
            except Rejected as error:
                if loaded and error.field == "model":
                    raise Rejected(error.code, f"refiner: {error.message}", field="refiner.model") from error
                raise
        for one in tasks:
            kept: set[Lora] = {lora for other in others if other.model == one.model for lora in other.loras}
            loaded[one.model].adapters.ensure(one.loras, kept)
            if one.task in loaded[one.model].templates:  # else it is refused below
                registry.equip(loaded[one.model], one, in_use, names)
    pipelines.check_passes(tasks, [loaded[one.model] for one in tasks])
    passes: list[Pass] = []
    warnings: list[tuple[str, str]] = []
    for one in tasks:
        model = loaded[one.model]
        template = model.guides.around(model.template(one.task), one)
        try:
            pipelines.check_limits(template, one, model.scheduler_config, model.size_multiple)
        except Rejected as error:
            if one is tasks[0]:
                raise
            field = "upscale" if one.since is None else "refiner.model"
            raise Rejected(error.code, f"{field}: its {error.message}", field=field) from error
        pipe = pipelines.prepare(template, one, model.scheduler_config, make_scheduler)
        model.guides.ip_adapters.attach(pipe, one.ip_adapter)
        passes.append(Pass(one, batch_key(one), acting(one), model, pipe))
        told = spelling.warnings_of(template, one)
        if why := pipelines.sampler_for(template, one, model.scheduler_config)[1]:
            told.append(("scheduler_replaced", why))
        warnings += [warning for warning in told if warning not in warnings]
    return passes, warnings


def _check_budget(registry: ModelRegistry, names: Collection[str]) -> None:
    """Refuse models that an image needs at the same time and that can never be in memory together."""
    budget = registry.memory_budget
    if budget is None or len(names) < 2:
        return
    sizes = {name: registry.size_of(name) for name in names}
    if sum(sizes.values()) > budget:
        told = " and ".join(f"{name!r} ({size:,} bytes)" for name, size in sizes.items())
        text = f"needs {told} in memory together; the budget is {budget:,} bytes"
        raise Rejected.of_field("refiner.model", text, "model_unavailable")
