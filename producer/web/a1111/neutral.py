"""Fields of A1111's bodies without a counterpart in a manifest.

One that cannot change the picture is ignored, whoever's it is, and a note says so where it asks for something; so
is a field that A1111 does not know, unless it looks like a slip. All others are accepted at a value that has no
effect, and refused by name otherwise, because a wrong picture is worse than an error.

Names and defaults: `modules/api/models.py` and `modules/processing.py` of stable-diffusion-webui, and of Forge and
SD.Next, which add fields of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from schemas.errors import Rejected
from schemas.result import Note

#: Ignored without a note: they matter only with a field that is refused or translated, or do what happens anyway.
IGNORED = {
    "send_images", "include_init_images", "override_settings_restore_afterwards", "force_task_id", "script_args",
    "infotext", "comments", "subseed", "s_tmin", "s_tmax", "s_min_uncond", "refiner_switch_at", "image_cfg_scale",
    "firstpass_image", "firstphase_width", "firstphase_height", "denoising_strength", "hr_scale", "hr_upscaler",
    "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_upscale_to_x", "hr_upscale_to_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg", "hr_distilled_cfg",
    "hr_additional_modules", "hr_denoising_strength", "hr_force", "truncate_x", "truncate_y",
    "inpaint_full_res_padding", "mask_round", "mask_blur_x", "mask_blur_y", "sd_model_name", "sd_model_hash",
}  # fmt: skip
#: Ignored with a note, unless they say nothing or have this value, which programs send unasked.
TOLD: dict[str, Any] = {
    "save_images": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "do_not_save_images": False,
    "distilled_cfg_scale": 3.5,
}
#: The same in txt2img, where they have no picture to act on.
TOLD_TXT2IMG: dict[str, Any] = {
    "resize_mode": 0,
    "mask_blur": 4,
    "inpainting_fill": 1,
    "inpaint_full_res": True,
    "inpainting_mask_invert": 0,
}
#: Values with no effect beside those that say nothing; and what to do instead of using the field.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "enable_hr": ((), "A1111 has it in txt2img only; give img2img the larger width and height"),
    "restore_faces": ((), "leave it out; there is no face restorer here"),
    "tiling": ((), "leave it out"),
    "alwayson_scripts": ((), "leave scripts such as ADetailer out; ControlNet is supported"),
    "script_name": ((), "leave it out; there are no scripts here"),
    "styles": ((), "write the text of the styles into the prompt"),
    "subseed_strength": ((), "leave it out; vary `seed` instead"),
    "seed_resize_from_w": ((-1,), "leave it out"),
    "seed_resize_from_h": ((-1,), "leave it out"),
    "eta": ((1,), "leave it out; each sampler has its own"),
    "s_churn": ((), "leave it out"),
    "s_noise": ((1,), "leave it out"),
    "initial_noise_multiplier": ((1,), "leave it out"),
    "latent_mask": ((), "send the mask as `mask`"),
    "init_images": ((), "send it to /sdapi/v1/img2img"),
    "mask": ((), "send it to /sdapi/v1/img2img"),
}
_SLIP = 0.88  # how alike two names are (see difflib) that differ by a letter or two
_NOTHING = (
    "",
    "none",
    "false",
    "0",
    "string",
)  # "string" is what Swagger puts into a field that is not filled in
_SETTINGS_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("automatic",),
    "sd_unet": ("automatic",),
    "randn_source": ("cpu",),
    "eta_noise_seed_delta": (),
    "ENSD": (),
    "img2img_fix_steps": (),
    "ddim_discretize": ("uniform",),
    "sd_hypernetwork": (),
    "inpainting_mask_weight": (1,),
    "initial_noise_multiplier": (1,),
    "comma_padding_backtrack": (20,),
}
#: How settings begin that are about files, previews and memory, and not about the picture.
_SETTINGS_IGNORED = (
    "save_", "samples_", "grid_", "return_", "outdir_", "directories_", "do_not_", "show_progress", "live_preview",
    "enable_pnginfo", "export_", "webp_lossless", "jpeg_", "n_rows", "add_model_", "notification", "forge_inference",
    "use_save_to", "temp_dir", "clean_temp", "face_restoration_model", "code_former_weight", "sd_checkpoint_hash",
)  # fmt: skip


def notes_on(
    body: Mapping[str, Any],
    read: Collection[str],
    *,
    img2img: bool,
    is_translated: Callable[[str, Any], bool] = lambda _script, _arguments: False,
) -> list[Note]:
    """What a body asks for that is ignored. Raises `Rejected` for a field that would change the picture.

    Args:
        read: the fields that are translated.
        is_translated: tells it of a script, by its name and its arguments.
    """
    told = TOLD if img2img else TOLD | TOLD_TXT2IMG
    notes = []
    for name, value in body.items():
        if name in read or name in IGNORED or says_nothing(value):
            continue
        if name in told:
            if value != told[name]:
                notes.append(_ignored(name))
        elif name == "alwayson_scripts" and isinstance(value, dict):
            notes += _scripts({one: units for one, units in value.items() if not is_translated(one, units)})
        elif name in NEUTRAL:
            _check_no_effect(name, value)
        else:
            notes.append(_unknown(name, {*read, *NEUTRAL, *told}))
    return notes


def setting_note(name: str, value: Any) -> Note | None:
    """The note on a setting of `override_settings` that is ignored. Raises `Rejected` for one that may not be."""
    field = f"override_settings.{name[:60]}"
    known = _SETTINGS_NEUTRAL.get(name)
    if says_nothing(value) or (known and (value.lower() if isinstance(value, str) else value) in known):
        return None
    if name.startswith(_SETTINGS_IGNORED):
        return _ignored(field)
    if name == "randn_source":
        text = f"{field} is ignored: the noise is drawn on the CPU, so the picture differs"
        return Note(code="ignored", field=field, message=text)
    raise Rejected.of_field(
        field,
        "is not supported; supported: sd_model_checkpoint, CLIP_stop_at_last_layers, samples_format, jpeg_quality",
    )


def says_nothing(value: Any) -> bool:
    """Whether a value is null, false, 0 or empty, or one of the words for that."""
    if isinstance(value, list):
        return all(isinstance(each, str) and each.lower() in _NOTHING for each in value)
    return value.strip().lower() in _NOTHING if isinstance(value, str) else not value


def _ignored(field: str, why: str = "it has no effect here") -> Note:
    return Note(code="ignored", field=field, message=f"{field} is ignored: {why}")


def _unknown(name: str, known: Collection[str]) -> Note:
    """The note on a field that A1111 does not know. Raises `Rejected` for a slip of a letter or two."""
    field = name[:60]
    if slip := difflib.get_close_matches(field, known, n=1, cutoff=_SLIP):
        raise Rejected.of_field(field, f"is not a field of A1111; did you mean {slip[0]}?")
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Note(code="ignored", field=field, message=f"{field} is ignored: it is not a field of A1111{hint}")


def _check_no_effect(name: str, value: Any) -> None:
    values, advice = NEUTRAL[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in values:
        return
    raise Rejected.of_field(name[:60], f"is {_shown(value)}, which is not supported: {advice}")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _scripts(scripts: dict[str, Any]) -> list[Note]:
    """Notes on scripts that are switched off; those without arguments are not worth one."""
    on = [name for name, script in scripts.items() if not _is_off(script)]
    if on:
        names = ", ".join(on)[:60]
        raise Rejected.of_field(
            "alwayson_scripts", f"is {names!r}, which is not supported: {NEUTRAL['alwayson_scripts'][1]}"
        )
    return [
        _ignored(f"alwayson_scripts.{name[:60]}", "it is switched off")
        for name, script in scripts.items()
        if _arguments(script)
    ]


def _arguments(script: Any) -> Any:
    return script.get("args") if isinstance(script, dict) else script


def _is_off(script: Any) -> bool:
    """Whether a script does nothing: its first argument is its switch, or each of its units is disabled."""
    arguments = _arguments(script)
    if isinstance(arguments, dict):
        arguments = list(arguments.values()) if "enabled" not in arguments else [arguments]
    if not isinstance(arguments, list) or not arguments:
        return not arguments
    if isinstance(arguments[0], dict):
        return all(isinstance(unit, dict) and unit.get("enabled") is False for unit in arguments)
    return says_nothing(arguments[0])
