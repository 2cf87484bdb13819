"""Translates a body of AUTOMATIC1111's web UI into a manifest, field by field.

There are three kinds of fields. Some have a counterpart in a manifest. Some never change the picture, or only
together with another field that is refused. All others would change it: they are accepted at the value that has no
effect, and refused by name otherwise, because a wrong picture is worse than an error.

Names and defaults: stable-diffusion-webui, `modules/api/models.py` and `modules/processing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.pictures import decode_base64
from producer.web import pictures
from schemas import infotext, samplers
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.result import Note

if TYPE_CHECKING:
    from PIL.Image import Image

    from schemas.limits import Limits

#: A manifest's field to its name in A1111's bodies.
A1111_NAMES = {
    "number_of_images": "batch_size",
    "strength": "denoising_strength",
    "scheduler": "sampler_name",
    "image": "init_images",
    "mask_image": "mask",
    "model": "override_settings.sd_model_checkpoint",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
}
SAME = ("prompt", "negative_prompt", "steps", "cfg_scale")  # same name, same meaning
_READ = {
    *SAME, "seed", "batch_size", "n_iter", "sampler_name", "sampler_index", "scheduler", "override_settings",
}  # fmt: skip
_READ_IMG2IMG = {"init_images", "mask", "denoising_strength", "width", "height", "resize_mode"}
_READ_IMG2IMG |= {"inpainting_mask_invert", "mask_blur", "inpainting_fill", "inpaint_full_res"}
#: Fields that never change the picture, or only together with a field of `NEUTRAL` that is refused.
IGNORED = {
    "save_images", "send_images", "do_not_save_samples", "do_not_save_grid", "include_init_images",
    "override_settings_restore_afterwards", "force_task_id", "script_args", "infotext", "comments",
    "subseed", "s_tmin", "s_tmax", "s_min_uncond", "refiner_switch_at", "image_cfg_scale",
    "firstpass_image", "firstphase_width", "firstphase_height", "denoising_strength",
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
    "inpaint_full_res_padding", "mask_round", "mask_blur_x", "mask_blur_y",
}  # fmt: skip
#: Values with no effect beside null, "", [], {}, 0 and false; and what to do instead of using the field.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "enable_hr": ((), "draw at the final size, or send the picture to img2img at a larger one"),
    "restore_faces": ((), "leave it out; there is no face restorer here"),
    "tiling": ((), "leave it out"),
    "alwayson_scripts": ((), "leave scripts such as ControlNet or ADetailer out"),
    "script_name": (("None",), "leave it out; there are no scripts here"),
    "styles": ((), "write the text of the styles into the prompt"),
    "subseed_strength": ((), "leave it out; vary `seed` instead"),
    "seed_resize_from_w": ((-1,), "leave it out"),
    "seed_resize_from_h": ((-1,), "leave it out"),
    "refiner_checkpoint": (("None",), "leave it out"),
    "eta": ((1,), "leave it out; each sampler has its own"),
    "s_churn": ((), "leave it out"),
    "s_noise": ((1,), "leave it out"),
    "initial_noise_multiplier": ((1,), "leave it out"),
    "latent_mask": ((), "send the mask as `mask`"),
}
_SETTINGS_IGNORED = {"save_images_add_number", "grid_save", "return_grid", "samples_save", "enable_pnginfo"}
_SETTINGS_NEUTRAL = {"sd_vae": ("Automatic", "None"), "eta_noise_seed_delta": (0,), "ENSD": (0,)}
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
    read = _READ | (_READ_IMG2IMG if img2img else {"width", "height"})
    for name, value in body.items():
        if name not in read and name not in IGNORED:
            _check_no_effect(name, value)
    manifest: dict[str, Any] = {"task": "text2img"}
    manifest |= {name: body[name] for name in SAME if body.get(name) is not None}
    manifest["number_of_images"] = _count(body, "batch_size") * _count(body, "n_iter")
    if body.get("seed") not in (None, "", -1):
        manifest["seed"] = body["seed"]
    if isinstance(manifest.get("prompt"), str):
        manifest["prompt"], loras = infotext.split_loras(manifest["prompt"])
        manifest |= {"loras": loras} if loras else {}
    try:
        manifest |= _sampler(body) | _settings(body.get("override_settings") or {}, model)
        if img2img:
            translation = _redraw(body, manifest, limits)
        else:
            sides = {name: body[name] for name in ("width", "height") if body.get(name) is not None}
            translation = Translation(manifest | sides)
        validate_manifest(translation.manifest, limits)
    except Rejected as error:
        raise _with_a1111_name(error) from error
    return translation


def _with_a1111_name(error: Rejected) -> Rejected:
    """The same refusal, with the field's name in A1111's bodies."""
    ours = error.field or ""
    theirs = A1111_NAMES.get(ours, ours)
    message = theirs + error.message[len(ours) :] if error.message.startswith(ours) else error.message
    return Rejected(error.code, message, field=theirs or None)


def _check_no_effect(name: str, value: Any) -> None:
    """Refuse a field that has no counterpart here, unless its value has no effect. Raises `Rejected`."""
    values, advice = NEUTRAL.get(name, ((), "the field is not known; leave it out"))
    if not value or (not isinstance(value, (dict, list, bool)) and value in values):
        return
    if name == "alwayson_scripts" and isinstance(value, dict):
        disabled: tuple[Any, ...] = ([], [False], None)
        if all(isinstance(script, dict) and script.get("args") in disabled for script in value.values()):
            return
        value = ", ".join(value)
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise Rejected.of_field(name, f"is {shown}, which is not supported: {advice}")


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000:
        raise Rejected.of_field(name, f"is {str(value)[:60]!r}; it should be a number of images, 1 or more")
    return value


def _sampler(body: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler that a sampler and a schedule name together; {} for the model's default."""
    name = body.get("sampler_name") or body.get("sampler_index")
    schedule = body.get("scheduler") or "automatic"
    if not name:
        name, schedule = "", "automatic" if schedule == "automatic" else schedule
    if not isinstance(name, str) or not isinstance(schedule, str):
        raise Rejected.of_field(
            "sampler_name", "and scheduler should be names; see /sdapi/v1/samplers and /sdapi/v1/schedulers"
        )
    plain = schedule.lower() in ("automatic", "normal", "uniform", "default")
    if not name and plain:
        return {}
    if not name:
        raise Rejected.of_field("scheduler", f"is {schedule!r} without a sampler; set sampler_name too")
    if plain:
        return {"scheduler": samplers.resolve(name).name}
    if schedule.lower() != "karras":
        raise Rejected.of_field("scheduler", f"is {schedule[:60]!r}; it should be automatic or karras")
    base = samplers.resolve(name).name.removesuffix(" Karras")
    if f"{base} Karras" not in samplers.names():
        raise Rejected.of_field("scheduler", f"is karras, which {base} does not support; use automatic")
    return {"scheduler": f"{base} Karras"}


def _settings(settings: Any, model: str | None) -> dict[str, Any]:
    """The manifest fields that `override_settings` sets."""
    if not isinstance(settings, dict):
        raise Rejected.of_field("override_settings", "should be an object of settings")
    fields: dict[str, Any] = {"model": model} if model else {}
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            if value:
                fields["model"] = checkpoint(value)
        elif name == "CLIP_stop_at_last_layers":
            if value not in (None, 1):
                fields["clip_skip"] = value
        elif name == "samples_format" and value is not None:
            if not isinstance(value, str) or value not in _FILES:
                raise Rejected.of_field(f"override_settings.{name}", f"should be one of {', '.join(_FILES)}")
            fields["output"] = {"format": _FILES[value]}
        elif value and name not in _SETTINGS_IGNORED and value not in _SETTINGS_NEUTRAL.get(name, ()):
            raise Rejected.of_field(
                f"override_settings.{name[:60]}",
                "is not supported; supported: sd_model_checkpoint, CLIP_stop_at_last_layers, samples_format",
            )
    return fields


def checkpoint(title: Any) -> str:
    """The model's name in a checkpoint title, which may end with a hash in brackets. Raises `Rejected`."""
    if not isinstance(title, str) or not title.strip():
        raise Rejected.of_field(
            "sd_model_checkpoint", "should be the title of a model; see /sdapi/v1/sd-models"
        )
    return re.sub(r"\[[0-9a-fA-F]*\]$", "", title.strip()).rstrip()


def _redraw(body: Mapping[str, Any], manifest: dict[str, Any], limits: Limits) -> Translation:
    images = body.get("init_images")
    if not isinstance(images, list) or not images:
        raise Rejected.of_field("init_images", "should be a list with one picture in base64")
    if len(images) > 1:
        raise Rejected.of_field("init_images", f"has {len(images)} pictures; send one request per picture")
    picture = _opened(images[0], "init_images", body, limits)
    manifest |= {"task": "img2img", "image": pictures.png_base64(picture)}
    manifest["strength"] = body["denoising_strength"] if body.get("denoising_strength") is not None else 0.75
    if not body.get("mask"):
        return Translation(manifest)
    mask = pictures.grey_mask(_opened(body["mask"], "mask", body, limits))
    if mask.size != picture.size:
        mask = pictures.resize(mask, *picture.size, crop=False)
    if body.get("inpainting_mask_invert"):
        mask = pictures.invert(mask)
    manifest |= {"task": "inpainting", "mask_image": pictures.png_base64(mask)}
    return Translation(manifest, _notes(body))


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
