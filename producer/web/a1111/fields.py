"""What a body of AUTOMATIC1111's web UI means as a manifest, field by field.

Three kinds of fields. Some have a counterpart here. Some change nothing in the picture, or only together
with another one that is refused. All others would change it: they are accepted while they are at the
value that changes nothing, and refused by name otherwise, for a picture that is not what was asked for
is worse than none.

Names and defaults: stable-diffusion-webui, `modules/api/models.py` and `modules/processing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from producer.web import pictures
from schemas import infotext, samplers
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.result import Note

if TYPE_CHECKING:
    from PIL.Image import Image

    from schemas.limits import Limits

#: What a manifest's field is called in their bodies.
THEIRS = {
    "number_of_images": "batch_size",
    "strength": "denoising_strength",
    "scheduler": "sampler_name",
    "image": "init_images",
    "mask_image": "mask",
    "model": "override_settings.sd_model_checkpoint",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
}
SAME = ("prompt", "negative_prompt", "steps", "cfg_scale")  # the same word means the same
_READ = {
    *SAME,
    "seed",
    "batch_size",
    "n_iter",
    "sampler_name",
    "sampler_index",
    "scheduler",
    "override_settings",
}
_READ_IMG2IMG = {"init_images", "mask", "denoising_strength", "width", "height", "resize_mode"}
_READ_IMG2IMG |= {"inpainting_mask_invert", "mask_blur", "inpainting_fill", "inpaint_full_res"}
#: Nothing in the picture depends on these, or only together with a field of `NEUTRAL` that is refused.
IDLE = {
    "save_images", "send_images", "do_not_save_samples", "do_not_save_grid", "include_init_images",
    "override_settings_restore_afterwards", "force_task_id", "script_args", "infotext", "comments",
    "subseed", "s_tmin", "s_tmax", "s_min_uncond", "refiner_switch_at", "image_cfg_scale",
    "firstpass_image", "firstphase_width", "firstphase_height", "denoising_strength",
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
    "inpaint_full_res_padding", "mask_round", "mask_blur_x", "mask_blur_y",
}  # fmt: skip
#: Values at which a field changes nothing, beside null, "", [], {}, 0 and false; and what to do instead.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "enable_hr": ((), "draw at the final size, or send the picture to img2img at a larger one"),
    "restore_faces": ((), "leave it out; there is no face restorer here"),
    "tiling": ((), "leave it out"),
    "alwayson_scripts": ((), "leave scripts such as ControlNet or ADetailer out"),
    "script_name": (("None",), "leave it out; there are no scripts here"),
    "styles": ((), "write the words of the styles into the prompt"),
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
_SETTINGS_IDLE = {"save_images_add_number", "grid_save", "return_grid", "samples_save", "enable_pnginfo"}
_SETTINGS_NEUTRAL = {"sd_vae": ("Automatic", "None"), "eta_noise_seed_delta": (0,), "ENSD": (0,)}
_FILES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A body of A1111, understood."""

    manifest: dict[str, Any]
    notes: list[Note] = field(default_factory=list)  # what was taken otherwise than A1111 would


def understood(body: Mapping[str, Any], *, img2img: bool, model: str | None, limits: Limits) -> Asked:
    """Translate a body; a picture in it is decoded and resized, so call it off the event loop.

    Args:
        model: the caller's choice in `/options`, if any.

    Raises:
        Rejected: a field is wrong, unknown, or asks for what cannot be done here.
    """
    read = _READ | (_READ_IMG2IMG if img2img else {"width", "height"})
    for name, value in body.items():
        if name not in read and name not in IDLE:
            _make_sure_it_changes_nothing(name, value)
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
            asked = _redraw(body, manifest, limits)
        else:
            asked = Asked(manifest | {n: body[n] for n in ("width", "height") if body.get(n) is not None})
        validate_manifest(asked.manifest, limits)
    except Rejected as fault:
        raise _in_their_words(fault) from fault
    return asked


def _in_their_words(fault: Rejected) -> Rejected:
    """The same refusal, with the field's name in A1111's bodies."""
    ours = fault.field or ""
    theirs = THEIRS.get(ours, ours)
    message = theirs + fault.message[len(ours) :] if fault.message.startswith(ours) else fault.message
    return Rejected(fault.code, message, field=theirs or None)


def _make_sure_it_changes_nothing(name: str, value: Any) -> None:
    also, advice = NEUTRAL.get(name, ((), "it is no field that is known here; leave it out"))
    if not value or (not isinstance(value, (dict, list, bool)) and value in also):
        return
    if name == "alwayson_scripts" and isinstance(value, dict):
        asleep: tuple[Any, ...] = ([], [False], None)
        if all(isinstance(one, dict) and one.get("args") in asleep for one in value.values()):
            return
        value = ", ".join(value)
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise _refused(name, f"is {shown}, which cannot be done here: {advice}")


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000:
        raise _refused(name, f"is {str(value)[:60]!r}; it should be a number of images, from 1 on")
    return value


def _sampler(body: Mapping[str, Any]) -> dict[str, Any]:
    """One scheduler name of the sampler's and the schedule's; none for the model's own."""
    name = body.get("sampler_name") or body.get("sampler_index")
    schedule = body.get("scheduler") or "automatic"
    if not name:
        name, schedule = "", "automatic" if schedule == "automatic" else schedule
    if not isinstance(name, str) or not isinstance(schedule, str):
        raise _refused("sampler_name", "and scheduler are names; see /sdapi/v1/samplers and /schedulers")
    plain = schedule.lower() in ("automatic", "normal", "uniform", "default")
    if not name and plain:
        return {}
    if not name:
        raise _refused("scheduler", f"is {schedule!r} without a sampler; name one in sampler_name, too")
    if plain:
        return {"scheduler": samplers.resolve(name).name}
    if schedule.lower() != "karras":
        raise _refused("scheduler", f"is {schedule[:60]!r}; there are automatic and karras")
    base = samplers.resolve(name).name.removesuffix(" Karras")
    if f"{base} Karras" not in samplers.names():
        raise _refused("scheduler", f"is karras, which {base} does not have; leave it automatic")
    return {"scheduler": f"{base} Karras"}


def _settings(settings: Any, model: str | None) -> dict[str, Any]:
    """What `override_settings` means for this request."""
    if not isinstance(settings, dict):
        raise _refused("override_settings", "should be an object of settings")
    found: dict[str, Any] = {"model": model} if model else {}
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            if value:
                found["model"] = checkpoint(value)
        elif name == "CLIP_stop_at_last_layers":
            if value not in (None, 1):
                found["clip_skip"] = value
        elif name == "samples_format" and value is not None:
            if not isinstance(value, str) or value not in _FILES:
                raise _refused(f"override_settings.{name}", f"should be one of {', '.join(_FILES)}")
            found["output"] = {"format": _FILES[value]}
        elif value and name not in _SETTINGS_IDLE and value not in _SETTINGS_NEUTRAL.get(name, ()):
            raise _refused(
                f"override_settings.{name[:60]}",
                "is a setting without effect here; there are sd_model_checkpoint, CLIP_stop_at_last_layers and "
                "samples_format",
            )
    return found


def checkpoint(title: Any) -> str:
    """A model's name out of its title, which may end in a hash in brackets. Raises `Rejected`."""
    if not isinstance(title, str) or not title.strip():
        raise _refused("sd_model_checkpoint", "should be the title of a model; see /sdapi/v1/sd-models")
    return re.sub(r"\[[0-9a-fA-F]*\]$", "", title.strip()).rstrip()


def _redraw(body: Mapping[str, Any], manifest: dict[str, Any], limits: Limits) -> Asked:
    images = body.get("init_images")
    if not isinstance(images, list) or not images:
        raise _refused("init_images", "should be a list of one picture in base64")
    if len(images) > 1:
        raise _refused("init_images", f"has {len(images)} pictures; send one request for each")
    picture = _opened(images[0], "init_images", body, limits)
    manifest |= {"task": "img2img", "image": pictures.coded(picture)}
    manifest["strength"] = body["denoising_strength"] if body.get("denoising_strength") is not None else 0.75
    if not body.get("mask"):
        return Asked(manifest)
    mask = pictures.white_and_black(_opened(body["mask"], "mask", body, limits))
    if mask.size != picture.size:
        mask = pictures.fitted(mask, *picture.size, crop=False)
    if body.get("inpainting_mask_invert"):
        mask = pictures.turned_round(mask)
    manifest |= {"task": "inpainting", "mask_image": pictures.coded(mask)}
    return Asked(manifest, _notes(body))


def _opened(text: Any, field: str, body: Mapping[str, Any], limits: Limits) -> Image:
    """A picture in the size that is asked for; its own where none is."""
    picture = pictures.opened(pictures.decoded(text, field, limits), field, limits)
    mode = body.get("resize_mode") or 0
    if mode not in (0, 1):
        raise _refused(
            "resize_mode", "should be 0 (stretch) or 1 (crop); fill the borders before you send it"
        )
    sides = [body.get("width") or picture.width, body.get("height") or picture.height]
    for name, side in zip(("width", "height"), sides, strict=True):
        if not isinstance(side, int) or isinstance(side, bool) or not 8 <= side <= limits.max_side:
            raise _refused(name, f"is {str(side)[:60]}; it should be a number from 8 to {limits.max_side}")
    return pictures.fitted(picture, sides[0], sides[1], crop=mode == 1)


def _notes(body: Mapping[str, Any]) -> list[Note]:
    """What an inpainting does otherwise here than there."""
    notes = []
    if body.get("mask_blur", 4):
        notes.append(Note(code="ignored", field="mask_blur", message="the mask's edge is not blurred"))
    if body.get("inpainting_fill", 1) != 1:
        text = "the picture itself is what the masked part starts from, whatever inpainting_fill says"
        notes.append(Note(code="ignored", field="inpainting_fill", message=text))
    if body.get("inpaint_full_res", True):
        text = "the whole picture is drawn, not a cut-out around the mask"
        notes.append(Note(code="ignored", field="inpaint_full_res", message=text))
    return notes


def _refused(name: str, text: str) -> Rejected:
    return Rejected("invalid_manifest", f"{name} {text}", field=name)
