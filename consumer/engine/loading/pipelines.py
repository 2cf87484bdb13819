"""One image as one call of an ordinary diffusers pipeline.

The engine runs `draw` in a greenlet, with a pipeline whose models are stand-ins; a test runs it
with a plain pipeline and compares. Both take the same path through diffusers.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from PIL import Image

from consumer.engine import device_errors
from consumer.engine.loading import spelling, weights
from consumer.renderer.protocol import ImageTask, RawPicture
from infra.models.folders import canonical_sampler, is_flow
from schemas import samplers
from schemas.defaults import multiples_of
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from consumer.engine.loading.registry import LoadedModel


#: What a model's training fixes, whichever scheduler samples it; the rest is the sampler's own.
_TRAINING = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "clip_sample",
        "clip_sample_range",
        "set_alpha_to_one",
    }
)


def build_scheduler(choice: samplers.SchedulerChoice, config: Mapping[str, Any]) -> Any:
    """Make one image's scheduler from the model's scheduler config; images never share one, because it keeps state.

    The model's training (betas, prediction type) is kept and only the sampler changes.

    Raises:
        Rejected: the scheduler needs a package that is not installed.
    """
    kind: Any = getattr(importlib.import_module("diffusers"), choice.class_name)
    base = {name: value for name, value in config.items() if not name.startswith("_")}
    if config.get("_class_name") != choice.class_name:
        shift = {"shift": base["flow_shift"]} if "flow_shift" in base else {}
        base = {name: value for name, value in base.items() if name in _TRAINING} | shift
    try:
        return kind.from_config({**base, **dict(choice.overrides)})
    except ImportError as error:
        reason = f"scheduler {choice.name!r} cannot run here: {error}"
        raise Rejected("unsupported", reason, field="scheduler") from error


def check_timesteps(scheduler: Any, name: str, steps: int) -> tuple[float, ...]:
    """The timesteps that a scheduler has set.

    Raises `Rejected` if one is NaN: with very few steps some schedulers divide by zero.

    Args:
        name: canonical.
    """
    timesteps = tuple(scheduler.timesteps.tolist())
    sigmas = getattr(scheduler, "sigmas", None)
    if any(map(math.isnan, (*timesteps, *(sigmas.tolist() if isinstance(sigmas, torch.Tensor) else ())))):
        text = f"is {steps}; the scheduler {name} cannot do so few with this model; ask for more"
        raise Rejected("unsupported", f"steps {text}", field="steps")
    return timesteps


def counting(scheduler: Any, name: str) -> Any:
    """A scheduler of diffusers that counts its steps, as `steps_done`; signatures stay as they are.

    `seen` is what its last step was given: the denoiser's input, the timestep, the output. Previews are made of it.
    """
    step, set_timesteps = scheduler.step, scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def checked(num_inference_steps: Any = None, *args: Any, **kwargs: Any) -> None:
        set_timesteps(num_inference_steps, *args, **kwargs)
        check_timesteps(scheduler, name, scheduler.num_inference_steps)

    @functools.wraps(step)
    def counted(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        scheduler.steps_done += 1
        scheduler.seen = (sample, timestep, model_output)
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.steps_done, scheduler.seen = 0, None
    vars(scheduler)["step"], vars(scheduler)["set_timesteps"] = counted, checked
    return scheduler


def check_limits(pipe: Any, task: ImageTask, scheduler_config: Mapping[str, Any], size_multiple: int) -> None:
    """Refuse what this model cannot do, before it fails inside diffusers. Raises `Rejected` with field and bound.

    Args:
        pipe: any of the model's pipelines.
        size_multiple: pixels.
    """
    spelling.check_pictures(pipe, task)
    if task.weights and not spelling.family(pipe).weighs:
        weights.refuse(task)
    trained = scheduler_config.get("num_train_timesteps", 1000)
    bounds = [("steps", task.steps, trained, f"was trained with {trained} steps")]
    if most := longest_side(pipe):
        why = f"knows no places beyond {most} pixels"
        bounds += [("width", task.width, most, why), ("height", task.height, most, why)]
    if task.clip_skip and "clip_skip" in spelling.keywords(pipe.__class__):
        encoders = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
        configs = (encoder.config for encoder in encoders if encoder is not None)
        layers = min((config.get_text_config().num_hidden_layers for config in configs), default=1)
        bounds.append(("clip_skip", task.clip_skip, layers, f"has a text encoder of {layers} layers"))
    if scheduler_config.get("shift_terminal") and task.steps == 1:  # its schedule would be 0 / 0
        text = f"is 1; at least 2 are needed, because the schedule of model {task.model!r} ends before the last step"
        raise Rejected.of_field("steps", text)
    for field, value, most, why in bounds:
        if value > most:
            text = f"is {value}; at most {most} is possible, because model {task.model!r} {why}"
            raise Rejected.of_field(_said_by(task, field), text)
    for field, value in (("width", task.width), ("height", task.height)):
        if value % size_multiple:
            text = f"is {value}; {multiples_of(task.model, value, size_multiple)}"
            raise Rejected.of_field(_said_by(task, field), text)


def longest_side(pipe: Any) -> int:
    """The most pixels of a side where the denoiser has a table of places; 0 where it computes them."""
    config = getattr(pipe, spelling.family(pipe).denoiser).config
    lengths = config.get("axes_lens")  # of text, rows and columns
    tokens = config.get("pos_embed_max_size") or (min(lengths[1:]) if lengths else 0)
    patch = config.get("patch_size") or min(config.get("all_patch_size") or [1])
    return int(tokens * patch * getattr(pipe, "vae_scale_factor", 8))


def _said_by(task: ImageTask, field: str) -> str:
    """The field of the manifest that decides a width or height: of a request with a picture it is the picture."""
    return "image" if field in ("width", "height") and task.task != "text2img" else field


#: Keywords of pipelines, in the order in which a refusal is searched for them, and a manifest's fields.
_FIELDS = {
    "strength": "strength", "num_inference_steps": "steps", "width": "width", "height": "height",
    "negative_prompt": "negative_prompt", "guidance_scale": "cfg_scale", "prompt": "prompt",
    "mask_image": "mask_image", "image": "image",
}  # fmt: skip


def refusal(task: ImageTask, error: BaseException) -> Rejected | None:
    """What is wrong with a request: as we say it, or as a pipeline that checks its arguments; None: something else."""
    if isinstance(error, Rejected):
        return error
    if _scheduler_failed(error):
        text = f"scheduler {task.scheduler!r} cannot do {task.steps} steps with model {task.model!r}"
        less = "or fewer steps" if task.task == "text2img" else "fewer steps, or more strength"
        text += f"; choose another scheduler, {less} ({device_errors.describe(error)})"
        return Rejected("unsupported", text, field="scheduler")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_name != "check_inputs":
        return None
    said = " ".join(str(error).split())[:300]
    field = next((field for name, field in _FIELDS.items() if name in said), None)
    text = f"model {task.model!r} cannot draw this request: {said}"
    return Rejected("unsupported", text, field=_said_by(task, field) if field else None)


def check_passes(passes: Sequence[ImageTask], models: Sequence[LoadedModel]) -> None:
    """Refuse passes that cannot follow each other with these models. Raises `Rejected`."""
    base = models[0]
    for task, model in zip(passes, models, strict=True):
        name = task.model
        if task.until is not None:
            drawn_with = model.guides.around(model.template(task.task), task)
            if "denoising_end" not in spelling.keywords(drawn_with.__class__):
                if "denoising_end" in spelling.keywords(model.template(task.task).__class__):
                    text = f"cannot guide {task.task} that stops early for a refiner; leave one of them out"
                    raise Rejected.of_field("controlnet", text, "unsupported")
                text = f"goes on from a model that can stop early, and {name!r} cannot; an SDXL model can"
                raise Rejected.of_field("refiner.model", text, "unsupported")
        if task.since is not None:
            pipe = model.templates.get("img2img")
            if pipe is None or "denoising_start" not in spelling.keywords(pipe.__class__):
                text = f"is {name!r}, which cannot go on from another model's latents; an SDXL refiner or model can"
                raise Rejected.of_field("refiner.model", text, "unsupported")
            ours, its = (base.templates[passes[0].task].vae.config, pipe.vae.config)
            if ours.latent_channels != its.latent_channels:
                text = f"is {name!r}, whose latents have {its.latent_channels} channels; those of {passes[0].model!r} "
                text += f"have {ours.latent_channels}"
                raise Rejected.of_field("refiner.model", text, "unsupported")
        elif task is not passes[0]:
            pipe = model.templates.get("img2img")
            if pipe is None or spelling.family(pipe).pictures:
                text = f"redraws the enlarged picture by img2img, which model {name!r} cannot do; it "
                text += "edits pictures" if pipe is not None else f"does {', '.join(model.templates)}"
                raise Rejected.of_field("upscale", text, "unsupported")


def _scheduler_failed(error: BaseException) -> bool:
    """Whether an error comes from diffusers' scheduler: then these steps are not possible with it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    wrong = isinstance(
        error, IndexError | ValueError | TypeError | KeyError | AssertionError | ZeroDivisionError
    )
    return wrong and trace is not None and ".schedulers." in trace.tb_frame.f_globals.get("__name__", "")


def sampler_for(pipe: Any, task: ImageTask, scheduler_config: Mapping[str, Any]) -> tuple[str, str]:
    """The sampler that a task is drawn with, and why it is not the one that its plan names.

    A plan may be wrong in that where the model was not on the planning worker's machine.

    Args:
        pipe: any of the model's pipelines.
    """
    own, one = canonical_sampler(scheduler_config.get("_class_name")), spelling.family(pipe).one_sampler
    return samplers.for_model(task.scheduler, own, flow=is_flow(scheduler_config), one=one)


def prepare(
    template: Any,
    task: ImageTask,
    scheduler_config: Mapping[str, Any],
    build: Callable[[samplers.SchedulerChoice, Mapping[str, Any]], Any] = build_scheduler,
) -> Any:
    """A pipeline for one image: the template's models, and a scheduler of its own."""
    pipe = copy.copy(template)  # shallow: models and processors are shared, state is not
    name, _ = sampler_for(template, task, scheduler_config)
    scheduler = build(samplers.resolve(name), scheduler_config)
    vars(pipe)["scheduler"] = scheduler  # not by the pipeline's setter, which would rewrite its config
    return pipe


def draw(pipe: Any, task: ImageTask, generator: torch.Generator | None = None, before: Any = None) -> Any:
    """Run the pipeline for one pass. Inpainting keeps the input picture's own pixels wherever the mask is black.

    Args:
        generator: of the image's noise; None: a new one, from its seed.
        before: what the pass before it made: a picture, or latents.

    Returns:
        A `RawPicture`; latents (1, channels, h, w) of a pass that stops early.

    Raises:
        Rejected: the pipeline drew another size than it was asked for; some do so without a word.
    """
    if isinstance(before, RawPicture):
        task = msgspec.structs.replace(task, image=enlarged(before, task.width, task.height))
    said = spelling.arguments(pipe, task, generator)
    if isinstance(before, torch.Tensor):
        said["image"] = before
    images = pipe(**said).images
    if task.until is not None:
        return images
    pixels = to_bytes(images[0])
    if pixels.shape[:2] != (task.height, task.width):
        drawn, asked = f"{pixels.shape[1]} x {pixels.shape[0]}", f"{task.width} x {task.height}"
        text = f"model {task.model!r} drew {drawn} pixels where {asked} were asked for; ask for a size that it draws"
        raise Rejected("unsupported", text, field="width" if task.task == "text2img" else "image")
    if task.task == "inpainting":
        pixels = _overlay(pipe, task, pixels)
    return RawPicture(width=pixels.shape[1], height=pixels.shape[0], channels=3, data=pixels.tobytes())


def enlarged(picture: RawPicture, width: int, height: int) -> RawPicture:
    """A picture at a larger size, resized on its pixels with Lanczos' filter."""
    whole = spelling.to_pil(picture).resize((width, height), Image.Resampling.LANCZOS)
    return RawPicture(width, height, 3, whole.tobytes())


def to_bytes(image: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(3, h, w) in [0, 1] to (h, w, 3) uint8, rounded as diffusers rounds."""
    scaled = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy()


def _overlay(pipe: Any, task: ImageTask, pixels: Any) -> Any:
    """Paste the input picture over the drawn one where the mask is black: the VAE changes every pixel a little."""
    whole = pipe.image_processor.apply_overlay(
        spelling.to_pil(task.mask), spelling.to_pil(task.image), Image.fromarray(pixels)
    )
    return np.asarray(whole)
