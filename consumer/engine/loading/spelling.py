"""How a request is said to a pipeline: the keywords of its call, and what of the request it cannot use.

`infra.models.families` says what differs from family to family. A keyword that a pipeline does not take is left out,
and the request gets a warning.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from consumer.engine.loading import weights
from consumer.engine.loading.ip_adapters import embeddings
from infra.models.families import Family, family_of, too_many_pictures
from infra.models.folders import is_distilled
from schemas.defaults import IMG2IMG_STRENGTH
from schemas.errors import Rejected
from schemas.text.prompts import plain

if TYPE_CHECKING:
    from consumer.renderer.protocol import ImageTask, RawPicture


def family(pipe: Any) -> Family:
    """The family of a pipeline, or of one whose models are stand-ins. Its copies know it: `components` is slow."""
    if (known := vars(pipe).get("_family")) is not None:
        return cast("Family", known)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    found = family_of(type(pipe).__name__.replace("ControlNet", ""), parts)
    if found is None:
        raise ValueError(f"no line knows {type(pipe).__name__}")  # such a folder was refused before
    vars(pipe)["_family"] = found
    return found


def guidance(pipe: Any) -> str:
    """How a pipeline takes guidance: as `families` says, or "none" where the model is distilled without it.

    A UNet that was distilled to take it as a number says so in its own config.
    """
    kind = family(pipe)
    config = getattr(pipe, kind.denoiser).config
    if is_distilled(kind, pipe.config, config):
        return "none"
    return "number" if config.get("time_cond_proj_dim") is not None else kind.guidance


def reader(pipe: Any) -> tuple[Any, int]:
    """The tokenizer that reads most of a prompt, and how many tokens it may have. (None, 0): nobody knows."""
    kind = family(pipe)
    tokenizer = getattr(pipe, kind.reader, None) or getattr(pipe, "tokenizer", None)
    tokenizer = tokenizer or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None or not kind.tokens:
        return None, 0
    short = getattr(pipe, kind.reader, None) is None  # the one with the long context is not there
    return tokenizer, min(77 if short else kind.tokens, tokenizer.model_max_length)


def generator(task: ImageTask) -> torch.Generator:
    """What draws the noise of an image, on the CPU."""
    return torch.Generator("cpu").manual_seed(task.seed)


def arguments(pipe: Any, task: ImageTask, noise: torch.Generator | None = None) -> dict[str, Any]:
    """The keyword arguments of the pipeline call. A pass from another's latents still needs them as its `image`."""
    kind, guided, (_, tokens) = family(pipe), guidance(pipe), reader(pipe)
    said: dict[str, Any] = {
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "num_inference_steps": task.steps,
        "generator": noise or generator(task),
        "clip_skip": task.clip_skip - 1 if task.clip_skip and task.clip_skip > 1 else None,
        "max_sequence_length": tokens or None,
        "width": task.width,
        "height": task.height,
        "max_area": task.width * task.height,  # else one of them draws every size as a megapixel
    }
    if guided == "true_cfg":
        said["true_cfg_scale"] = task.cfg_scale
        if task.cfg_scale > 1:  # without one there is no guidance
            said["negative_prompt"] = task.negative_prompt or " "
    elif guided == "less_one":
        said["guidance_scale"] = max(0.0, task.cfg_scale - 1)
    elif guided == "none":
        said["guidance_scale"] = 1.0
    else:
        said["guidance_scale"] = task.cfg_scale
    if task.since is not None:
        said["denoising_start"] = task.since
    elif task.task != "text2img" and kind.pictures:
        pictures = [to_pil(picture) for picture in edited(task)]
        said |= {"image": pictures if kind.pictures > 1 else pictures[0]}
    elif task.task != "text2img":
        said |= {"image": to_pil(task.image), "strength": strength(task)}
    if task.task == "inpainting":
        said["mask_image"] = to_pil(task.mask)
    if task.controls:
        said |= _controls(task)
    if task.ip_adapter is not None:
        with_guidance = guided not in ("number", "none") and task.cfg_scale > 1
        picture = to_pil(task.pictures.get("ip_adapter.image"))
        said["ip_adapter_image_embeds"] = embeddings(pipe, picture, guided=with_guidance)
    taken = keywords(pipe.__class__)
    if task.weights:
        said |= weights.spoken(pipe, task)
    said = {**{name: value for name, value in said.items() if value is not None}, **kind.keywords}
    if task.until is not None:
        said |= {"denoising_end": task.until, "output_type": "latent"}
    return {"output_type": "pt", **{name: value for name, value in said.items() if name in taken}}


def _controls(task: ImageTask) -> dict[str, Any]:
    """The keywords for ControlNets, each of which takes a list."""
    places = range(len(task.controls))
    return {
        "image" if task.task == "text2img" else "control_image": [
            to_pil(task.pictures.get(f"controlnet.{place}.image")) for place in places
        ],
        "controlnet_conditioning_scale": [control.scale for control in task.controls],
        "control_guidance_start": [control.start for control in task.controls],
        "control_guidance_end": [control.end for control in task.controls],
    }


def edited(task: ImageTask) -> list[RawPicture]:
    """The pictures of `image`, in their order."""
    found = [] if task.image is None else [task.image]
    while (more := task.pictures.get(f"image.{len(found)}")) is not None:
        found.append(more)
    return found


def check_pictures(pipe: Any, task: ImageTask) -> None:
    """Refuse pictures that a model cannot read. Raises `Rejected`."""
    kind, pictures = family(pipe), edited(task)
    most = kind.pictures or 1
    if len(pictures) > most:
        raise Rejected.of_field("image", too_many_pictures(task.model, len(pictures), most))
    for picture in pictures if kind.pictures else ():
        short, long = sorted((picture.width, picture.height))
        if short < kind.smallest:
            text = f"is {picture.width} x {picture.height}; model {task.model!r} reads pictures from {kind.smallest}"
            raise Rejected.of_field("image", f"{text} pixels a side")
        if kind.longest and long > kind.longest * short:
            text = f"is {picture.width} x {picture.height}; model {task.model!r} reads pictures whose longer side is at"
            raise Rejected.of_field("image", f"{text} most {kind.longest} times the shorter one")


def strength(task: ImageTask) -> float:
    """How much of the picture to change; raised where it would leave no step to draw."""
    value = (
        task.strength
        if task.strength is not None
        else (1.0 if task.task == "inpainting" else IMG2IMG_STRENGTH)
    )
    if int(task.steps * value) >= 1:
        return value
    return min(1.0, math.nextafter(1 / task.steps, 2.0))


def warnings_of(pipe: Any, task: ImageTask) -> list[tuple[str, str]]:
    """What the pipeline will silently change or ignore, as (code, message)."""
    guided, taken = guidance(pipe), keywords(pipe.__class__)
    tokenizer, tokens = reader(pipe)
    distilled = guided in ("number", "none")
    deaf = distilled or "negative_prompt" not in taken
    warnings = []
    for field, text in (("prompt", task.prompt), ("negative_prompt", task.negative_prompt or "")):
        if tokenizer is None or (field == "negative_prompt" and (deaf or task.cfg_scale <= 1)):
            continue
        if task.weights:
            if weights.needed(task):  # read whole, in pieces
                continue
            text = plain(text)
        limit = tokens - tokenizer.num_special_tokens_to_add()
        if cut := cut_text(tokenizer, text, limit):
            warnings.append(
                ("prompt_cut", f'the words "{cut}" of {field} were cut: the model reads {limit} tokens')
            )
    model = f"with model {task.model!r}"
    if task.negative_prompt and (deaf or task.cfg_scale <= 1):
        why = f"{model}, which is distilled" if distilled else "at a cfg_scale of 1 or below"
        why = f"{model}, which reads none" if deaf and not distilled else why
        warnings.append(("ignored", f"negative_prompt has no effect {why}"))
    if guided == "none" and task.cfg_scale > 1:
        warnings.append(
            ("ignored", f"cfg_scale has no effect {model}, which is distilled to draw without guidance")
        )
    if task.clip_skip and task.clip_skip > 1 and "clip_skip" not in taken:
        warnings.append(("ignored", f"clip_skip has no effect {model}, whose pipeline has no such setting"))
    if task.task == "img2img" and family(pipe).pictures:
        # Plans have the default where the planning worker did not know the model.
        if task.strength not in (None, IMG2IMG_STRENGTH):
            warnings.append(("ignored", f"strength has no effect {model}, which edits as the prompt says"))
        return warnings
    if task.task != "text2img" and task.strength is not None and strength(task) != task.strength:
        text = f"strength {task.strength:g} leaves no step of {task.steps} to draw; one step was drawn"
        warnings.append(("strength_raised", text))
    return warnings + _idle_controls(task)


def _idle_controls(task: ImageTask) -> list[tuple[str, str]]:
    """Warnings of ControlNets that act at no step, by the rule of diffusers' pipelines."""
    steps = task.steps if task.task == "text2img" else int(task.steps * strength(task))
    warnings = []
    for place, control in enumerate(task.controls):
        acts = any(i / steps >= control.start and (i + 1) / steps <= control.end for i in range(steps))
        if not (acts and control.scale):
            where = f"from {control.start:g} to {control.end:g}, with a scale of {control.scale:g},"
            text = f"controlnet.{place} ({control.name}) has no effect: {where} it acts at none of the {steps} steps"
            warnings.append(("ignored", text))
    return warnings


def cut_text(tokenizer: Any, text: str, limit: int) -> str:
    """The end of the text that exceeds so many tokens, as it was written."""
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


@functools.cache
def keywords(kind: Any) -> frozenset[str]:
    """The keywords that a class of pipelines takes."""
    return frozenset(inspect.signature(kind.__call__).parameters)
