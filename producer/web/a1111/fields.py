"""Translates a body of AUTOMATIC1111's web UI into a manifest, field by field.

Fields without a counterpart in a manifest are in `neutral`. Numbers may be texts, and whole numbers may be written
as 20.0, as A1111's own models take them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.pictures import decode_base64
from producer.web import pictures
from producer.web.a1111 import controlnet, neutral, second_pass
from producer.web.naming import in_their_words
from schemas import samplers
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.result import Note
from schemas.text import infotext
from schemas.text.prompts import with_weights

if TYPE_CHECKING:
    from PIL.Image import Image

    from schemas.limits import Limits

CHECKPOINT, CLIP_SKIP = "override_settings.sd_model_checkpoint", "override_settings.CLIP_stop_at_last_layers"
#: A manifest's field to its name in A1111's bodies.
A1111_NAMES = {
    "number_of_images": "batch_size",
    "strength": "denoising_strength",
    "scheduler": "sampler_name",
    "image": "init_images",
    "mask_image": "mask",
    "loras": "prompt",
    "output.format": "override_settings.samples_format",
    "output.quality": "override_settings.jpeg_quality",
    "model": CHECKPOINT,
    "clip_skip": CLIP_SKIP,
}
SAME = ("prompt", "negative_prompt", "steps", "cfg_scale")  # same name, same meaning
_READ = {
    *SAME, "seed", "batch_size", "n_iter", "batch_count", "sampler_name", "sampler_index", "scheduler", "clip_skip",
    "width", "height", "override_settings", "refiner_checkpoint",
}  # fmt: skip
_READ_IMG2IMG = {"init_images", "mask", "denoising_strength", *neutral.TOLD_TXT2IMG}
_NUMBERS = (
    "steps", "cfg_scale", "seed", "batch_size", "n_iter", "batch_count", "clip_skip", "width", "height",
    "denoising_strength", "resize_mode", "mask_blur", "inpainting_fill", "inpainting_mask_invert", *second_pass.NUMBERS,
)  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})(e[-+]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_FILES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True, slots=True)
class Translation:
    """A body of A1111 as a manifest."""

    manifest: dict[str, Any]
    notes: list[Note] = field(default_factory=list)  # where the picture differs from what A1111 would draw


def manifest_of(body: Mapping[str, Any], *, img2img: bool, model: str | None, limits: Limits) -> Translation:
    """Translate a body. It decodes and resizes pictures, so call it in a thread.

    Args:
        model: the caller's choice in `/options`, if any.

    Raises:
        Rejected: a field is not valid, not known, or not supported; it has A1111's name.
    """
    read = _READ | (_READ_IMG2IMG if img2img else {"enable_hr"})
    notes = neutral.notes_on(body, read, img2img=img2img, is_translated=controlnet.is_unit)
    body = {**body, **{name: _number(body[name]) for name in _NUMBERS if name in body}}
    manifest: dict[str, Any] = {"task": "text2img"}
    manifest |= {name: body[name] for name in SAME if body.get(name) is not None}
    count = "n_iter" if body.get("n_iter") is not None else "batch_count"  # as SD.Next calls it
    manifest["number_of_images"] = _count(body, "batch_size") * _count(body, count)
    if body.get("seed") not in (None, "", -1):
        manifest["seed"] = body["seed"]
    if body.get("clip_skip") not in (None, 0, 1):
        manifest["clip_skip"] = body["clip_skip"]
    manifest |= _prompt(manifest.get("prompt")) | _sampler(body)
    if isinstance(avoided := manifest.get("negative_prompt"), str):
        manifest["negative_prompt"] = with_weights(avoided)
    manifest |= _settings(body.get("override_settings") or {}, model, notes)
    refiner = body.get("refiner_checkpoint")
    second = None if neutral.says_nothing(refiner) else checkpoint(refiner, "refiner_checkpoint")
    manifest |= second_pass.refiner_of(body, second, notes)
    if img2img:
        notes += _redraw(body, manifest, limits)
    else:
        manifest |= {name: body[name] for name in ("width", "height") if body.get(name) is not None}
        manifest |= second_pass.upscale_of(body, limits, notes)
    if controls := controlnet.controls(body, limits, manifest.get("image")):
        manifest["controlnet"] = controls
    try:
        validate_manifest(manifest, limits)
    except Rejected as error:
        field, message = in_their_words(error.field, error.message, names_in(body))
        raise Rejected(error.code, message, field=field) from error
    return Translation(manifest, notes)


def names_in(body: Mapping[str, Any]) -> dict[str, str]:
    """A manifest's fields to their names in this body: a model and a clip skip can be given in two places."""
    settings = body.get("override_settings")
    chosen = settings if isinstance(settings, dict) else {}
    return (A1111_NAMES | second_pass.names_in(body)) | {
        "model": CHECKPOINT if chosen.get("sd_model_checkpoint") else "sd_model_checkpoint",
        "clip_skip": CLIP_SKIP if "CLIP_stop_at_last_layers" in chosen else "clip_skip",
        **controlnet.names(body),
    }


def _number(value: Any) -> Any:
    """A number that is written as a text, or a whole number as 20.0; anything else stays, and is refused later."""
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return value
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _prompt(prompt: Any) -> dict[str, Any]:
    """The prompt without the tags of LoRAs, and those."""
    if not isinstance(prompt, str):
        return {}
    prompt, loras = infotext.split_loras(prompt)
    prompt = with_weights(prompt)
    if (tag := re.search(r"<lora:[^<>]*>", prompt)) is not None:
        text = f"has the tag {tag[0][:60]!r}; write <lora:name:weight>, with one number for the weight"
        raise Rejected.of_field("prompt", text)
    return {"prompt": prompt, **({"loras": loras} if loras else {})}


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000:
        raise Rejected.of_field(name, f"is {str(value)[:60]!r}; it should be a number of images, 1 or more")
    return value


def _sampler(body: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler that a sampler and a schedule name together; {} for the model's default."""
    name, schedule = (_name(body, field) for field in ("sampler_name", "scheduler"))
    name = name or _name(body, "sampler_index")
    name = "" if name.lower() in ("default", "automatic") else name  # SD.Next's word for the model's own
    plain = schedule.lower() in ("", "automatic", "normal", "uniform", "default")
    if not plain and schedule.lower() != "karras":
        raise Rejected.of_field("scheduler", f"is {schedule[:60]!r}; it should be automatic or karras")
    if not name:
        if not plain:
            raise Rejected.of_field("scheduler", f"is {schedule!r} without a sampler; set sampler_name too")
        return {}
    try:
        choice = samplers.resolve(name)
    except Rejected as error:
        raise Rejected(error.code, error.message, field="sampler_name") from error
    if plain or choice.name.endswith(" Karras"):
        return {"scheduler": name}
    if f"{choice.name} Karras" not in samplers.names():
        raise Rejected.of_field(
            "scheduler", f"is karras, which {choice.name} does not support; use automatic"
        )
    return {"scheduler": f"{name} Karras"}


def _name(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if neutral.says_nothing(value):
        return ""
    if not isinstance(value, str) or len(value) > 90:
        raise Rejected.of_field(field, "should be a name; see /sdapi/v1/samplers and /sdapi/v1/schedulers")
    return value


def _settings(settings: Any, model: str | None, notes: list[Note]) -> dict[str, Any]:
    """The manifest fields that `override_settings` sets; what is ignored is added to the notes."""
    if not isinstance(settings, dict):
        raise Rejected.of_field("override_settings", "should be an object of settings")
    fields: dict[str, Any] = {"model": model} if model else {}
    output: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            if not neutral.says_nothing(value):
                fields["model"] = checkpoint(value, CHECKPOINT)
        elif name == "CLIP_stop_at_last_layers":
            if (skip := _number(value)) not in (None, 0, 1):
                fields["clip_skip"] = skip
        elif name == "samples_format" and value is not None:
            if not isinstance(value, str) or value.lower() not in _FILES:
                raise Rejected.of_field(f"override_settings.{name}", f"should be one of {', '.join(_FILES)}")
            output["format"] = _FILES[value.lower()]
        elif name == "jpeg_quality" and value is not None:
            output["quality"] = _number(value)
        elif (note := neutral.setting_note(name, value)) is not None:
            notes.append(note)
    if "format" in output:  # the quality is that of JPEG and WebP
        fields["output"] = output
    return fields


def checkpoint(title: Any, field: str = "sd_model_checkpoint") -> str:
    """The model's name in a checkpoint title, which may end with a hash in brackets. Raises `Rejected`."""
    if not isinstance(title, str) or not title.strip():
        raise Rejected.of_field(field, "should be the title of a model; see /sdapi/v1/sd-models")
    return re.sub(r"\[[0-9a-fA-F]*\]$", "", title.strip()).rstrip()


def _redraw(body: Mapping[str, Any], manifest: dict[str, Any], limits: Limits) -> list[Note]:
    """Add the pictures to a manifest; returns where the result differs from A1111's."""
    images = body.get("init_images")
    if not isinstance(images, list) or not images:
        raise Rejected.of_field("init_images", "should be a list with one picture in base64")
    if len(images) > 1:
        raise Rejected.of_field("init_images", f"has {len(images)} pictures; send one request per picture")
    picture = _opened(images[0], "init_images", body, limits)
    manifest |= {"task": "img2img", "image": pictures.png_base64(picture)}
    manifest["strength"] = body["denoising_strength"] if body.get("denoising_strength") is not None else 0.75
    if neutral.says_nothing(body.get("mask")):
        return []
    mask = pictures.grey_mask(_opened(body["mask"], "mask", body, limits))
    if mask.size != picture.size:
        mask = pictures.resize(mask, *picture.size, crop=False)
    if body.get("inpainting_mask_invert"):
        mask = pictures.invert(mask)
    manifest |= {"task": "inpainting", "mask_image": pictures.png_base64(mask)}
    return _notes(body)


def _opened(text: Any, field: str, body: Mapping[str, Any], limits: Limits) -> Image:
    """A picture, resized to the body's width and height if it has them."""
    picture = pictures.decode_picture(decode_base64(text, field, limits), field, limits)
    mode = body.get("resize_mode") or 0
    if mode not in (0, 1):
        raise Rejected.of_field(
            "resize_mode",
            "should be 0 (stretch) or 1 (crop); for anything else, resize the picture before you send it",
        )
    sides = [body.get("width") or picture.width, body.get("height") or picture.height]
    for name, side in zip(("width", "height"), sides, strict=True):
        if not isinstance(side, int) or isinstance(side, bool) or not 8 <= side <= limits.max_side:
            raise Rejected.of_field(
                name, f"is {str(side)[:60]}; it should be a number from 8 to {limits.max_side}"
            )
    return pictures.resize(picture, sides[0], sides[1], crop=mode == 1)


def _notes(body: Mapping[str, Any]) -> list[Note]:
    """Where an inpainting here differs from A1111's."""
    notes = []
    if body.get("mask_blur", 4):
        notes.append(Note(code="ignored", field="mask_blur", message="the mask's edge is not blurred"))
    if body.get("inpainting_fill", 1) != 1:
        text = "the masked part always starts from the picture itself"
        notes.append(Note(code="ignored", field="inpainting_fill", message=text))
    if body.get("inpaint_full_res", True):
        text = "the whole picture is drawn, not only the region around the mask"
        notes.append(Note(code="ignored", field="inpaint_full_res", message=text))
    return notes
