"""One image as one call of an ordinary diffusers pipeline.

The engine runs `draw` in a greenlet, with a pipeline whose models are stand-ins; a test runs it
with a plain pipeline and compares. Both take the same path through diffusers.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from consumer.renderer.protocol import ImageTask, RawPicture
from schemas import samplers
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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
        base = {name: value for name, value in base.items() if name in _TRAINING}
    try:
        return kind.from_config({**base, **dict(choice.overrides)})
    except ImportError as error:
        reason = f"scheduler {choice.name!r} cannot run here: {error}"
        raise Rejected("unsupported", reason, field="scheduler") from error


def check_limits(pipe: Any, task: ImageTask, scheduler_config: Mapping[str, Any]) -> None:
    """Refuse what this model cannot do, before it fails inside diffusers. Raises `Rejected` with field and bound.

    Args:
        pipe: any of the model's pipelines.
    """
    encoders = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    layers = min(encoder.config.num_hidden_layers for encoder in encoders if encoder is not None)
    trained = scheduler_config.get("num_train_timesteps", 1000)
    bounds = [
        ("clip_skip", task.clip_skip or 1, layers, f"has a text encoder of {layers} layers"),
        ("steps", task.steps, trained, f"was trained with {trained} steps"),
    ]
    for field, value, most, why in bounds:
        if value > most:
            text = f"is {value}; at most {most} is possible, because model {task.model!r} {why}"
            raise Rejected.of_field(field, text)
    factor = pipe.vae_scale_factor
    for field, value in (("width", task.width), ("height", task.height)):
        if value % factor:
            text = f"is {value}; model {task.model!r} draws multiples of {factor}"
            raise Rejected.of_field(field if task.task == "text2img" else "image", text)


def scheduler_failed(error: BaseException) -> bool:
    """Whether an error comes from diffusers' scheduler: then these steps are not possible with it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    wrong = isinstance(
        error, IndexError | ValueError | TypeError | KeyError | AssertionError | ZeroDivisionError
    )
    return wrong and trace is not None and ".schedulers." in trace.tb_frame.f_globals.get("__name__", "")


def prepare(
    template: Any,
    task: ImageTask,
    scheduler_config: Mapping[str, Any],
    build: Callable[[samplers.SchedulerChoice, Mapping[str, Any]], Any] = build_scheduler,
) -> Any:
    """A pipeline for one image: the template's models, and a scheduler of its own."""
    pipe = copy.copy(template)  # shallow: models and processors are shared, state is not
    scheduler = build(samplers.resolve(task.scheduler), scheduler_config)
    vars(pipe)["scheduler"] = scheduler  # not by the pipeline's setter, which would rewrite its config
    return pipe


def draw(pipe: Any, task: ImageTask) -> RawPicture:
    """Run the pipeline. Inpainting keeps the input picture's own pixels wherever the mask is black."""
    image = pipe(**arguments(task)).images[0]
    pixels = to_bytes(image)
    if task.task == "inpainting":
        pixels = _overlay(pipe, task, pixels)
    return RawPicture(width=pixels.shape[1], height=pixels.shape[0], channels=3, data=pixels.tobytes())


def arguments(task: ImageTask) -> dict[str, Any]:
    """The keyword arguments of the pipeline call."""
    kwargs: dict[str, Any] = {
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "num_inference_steps": task.steps,
        "guidance_scale": task.cfg_scale,
        "generator": torch.Generator("cpu").manual_seed(task.seed),
        "clip_skip": task.clip_skip - 1 if task.clip_skip and task.clip_skip > 1 else None,
        "output_type": "pt",
    }
    if task.task != "img2img":
        kwargs |= {"width": task.width, "height": task.height}
    if task.task != "text2img":
        kwargs |= {"image": to_pil(task.image), "strength": strength(task)}
    if task.task == "inpainting":
        kwargs["mask_image"] = to_pil(task.mask)
    return kwargs


def strength(task: ImageTask) -> float:
    """How much of the picture to change; raised where it would leave no step to draw."""
    value = task.strength if task.strength is not None else (1.0 if task.task == "inpainting" else 0.8)
    if int(task.steps * value) >= 1:
        return value
    return min(1.0, math.nextafter(1 / task.steps, 2.0))


def warnings_of(
    task: ImageTask, tokenizers: Sequence[Any], *, takes_guidance_as_number: bool = False
) -> list[tuple[str, str]]:
    """What the pipeline will silently change or ignore, as (code, message).

    Args:
        takes_guidance_as_number: the UNet is distilled so, and never sees a negative prompt.
    """
    warnings = []
    unread = takes_guidance_as_number or task.cfg_scale <= 1
    for field, text in (("prompt", task.prompt), ("negative_prompt", task.negative_prompt or "")):
        if field == "negative_prompt" and unread:
            continue
        if tokenizers and (cut := cut_text(tokenizers[0], text)):
            limit = tokenizers[0].model_max_length - 2
            warnings.append(
                ("prompt_cut", f'the words "{cut}" of {field} were cut: the model reads {limit} tokens')
            )
    if task.negative_prompt and unread:
        why = f"with model {task.model!r}, which is distilled" if takes_guidance_as_number else ""
        text = f"negative_prompt has no effect {why or 'at a cfg_scale of 1 or below'}"
        warnings.append(("ignored", text))
    if task.task != "text2img" and task.strength is not None and strength(task) != task.strength:
        warnings.append(
            (
                "strength_raised",
                f"strength {task.strength:g} leaves no step of {task.steps} to draw; one step was drawn",
            )
        )
    return warnings


def cut_text(tokenizer: Any, text: str) -> str:
    """The end of the text that exceeds the model's token limit, as it was written."""
    limit = tokenizer.model_max_length - 2  # start and end take one each
    if len(text.encode()) <= limit:  # a token is one byte or more
        return ""
    encoded = tokenizer(
        text, add_special_tokens=False, truncation=False, return_offsets_mapping=tokenizer.is_fast
    )
    ids = encoded["input_ids"]
    if len(ids) <= limit:
        return ""
    if tokenizer.is_fast:
        return text[encoded["offset_mapping"][limit][0] :].strip()
    return str(tokenizer.decode(ids[limit:])).strip()


def to_pil(picture: RawPicture | None) -> Image.Image:
    if picture is None:
        raise ValueError("the task has no picture")
    mode = {1: "L", 3: "RGB"}[picture.channels]
    return Image.frombytes(mode, (picture.width, picture.height), picture.data)


def to_bytes(image: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(3, h, w) in [0, 1] to (h, w, 3) uint8, rounded as diffusers rounds."""
    scaled = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy()


def _overlay(pipe: Any, task: ImageTask, pixels: Any) -> Any:
    """Paste the input picture over the drawn one where the mask is black: the VAE changes every pixel a little."""
    whole = pipe.image_processor.apply_overlay(to_pil(task.mask), to_pil(task.image), Image.fromarray(pixels))
    return np.asarray(whole)
