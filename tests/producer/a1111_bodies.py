"""Bodies as programs for A1111's API send them: their fields and defaults, with small sizes and few steps.

Written down after the programs' own sources. Prompts, names of models and addresses are ours.
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}
_DEFAULTS: dict[str, Any] = {  # of A1111's own models
    "prompt": "a red circle", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": "Euler a", "scheduler": None, "batch_size": 1,
    "n_iter": 1, "cfg_scale": 7.0, "restore_faces": None, "tiling": None, "do_not_save_samples": False,
    "do_not_save_grid": False, "eta": None, "denoising_strength": None, "s_min_uncond": None, "s_churn": None,
    "s_tmax": None, "s_tmin": None, "s_noise": None, "override_settings": None,
    "override_settings_restore_afterwards": True, "refiner_checkpoint": None, "refiner_switch_at": None,
    "disable_extra_networks": False, "firstpass_image": None, "comments": None, "enable_hr": False,
    "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0,
    "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None, "hr_scheduler": None,
    "hr_prompt": "", "hr_negative_prompt": "", "force_task_id": None, "sampler_index": "Euler", "script_name": None,
    "script_args": [], "send_images": True, "save_images": False, "alwayson_scripts": {}, "infotext": None,
}  # fmt: skip

TXT2IMG: dict[str, dict[str, Any]] = {
    "A1111's defaults": _DEFAULTS,
    "Swagger's own values for A1111": {
        **_DEFAULTS, "styles": ["string"], "scheduler": "string", "restore_faces": False, "tiling": False, "eta": 0,
        "denoising_strength": 0, "s_churn": 0, "s_noise": 0, "override_settings": {}, "refiner_checkpoint": "string",
        "refiner_switch_at": 0, "firstpass_image": "string", "comments": {"additionalProp1": "string"},
        "hr_upscaler": "string", "hr_checkpoint_name": "string", "hr_sampler_name": "string", "hr_prompt": "string",
        "script_name": "string", "infotext": "string", "force_task_id": "string",
    },
    "Forge's defaults": {
        **_DEFAULTS, "distilled_cfg_scale": 3.5, "hr_cfg": 1.0, "hr_distilled_cfg": 3.5, "hr_additional_modules": None,
        "override_settings": {"forge_additional_modules": [], "forge_inference_memory": 1024},
    },
    "SD.Next": {
        "prompt": "a red circle", "clip_skip": 1, "batch_count": 1, "hr_force": False, "hr_denoising_strength": 0.7,
        "do_not_save_images": True, "sampler_name": "Default", "seed": -1,
    },
    "a chat front end": {  # SillyTavern
        "prompt": "a red circle", "negative_prompt": "", "sampler_name": "DPM++ 2M", "scheduler": "Karras",
        "cfg_scale": 7, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": None},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    },
    "a chat interface with tools": {  # Open WebUI
        "prompt": "a red circle", "batch_size": 1, "negative_prompt": "blue", "cfg_scale": 7.0,
        "sampler_name": "Euler a", "scheduler": "automatic",
    },
    "an assistant's plugin": {  # LibreChat
        "prompt": "a red circle", "negative_prompt": "", "sampler_index": "DPM++ 2M Karras", "cfg_scale": 4.5,
    },
    "a local language model's page": {  # KoboldAI Lite
        "prompt": "a red circle", "negative_prompt": "", "cfg_scale": "7", "seed": "-1", "sampler_name": "Euler a",
        "steps": "2", "width": "64", "height": "64", "save_images": False, "override_settings": {},
    },
    "a game's narrator": {
        "prompt": "a red circle", "hr_upscale_to_x": 0, "hr_upscale_to_y": 0, "truncate_x": 0, "truncate_y": 0,
        "applied_old_hires_behavior_to": None, "sampler_index": "DPM++ SDE Karras", "alwayson_scripts": {},
        "override_settings": {"sd_model_checkpoint": ""},
    },
    "a cloud worker": {
        **_DEFAULTS, "s_tmax": "Infinity", "s_noise": 1.0, "hr_upscaler": "Latent", "override_settings": {},
        "comments": {}, "sampler_index": "DPM++ 2M Karras",
    },
    "a bot with its settings": {
        "prompt": "a red circle", "styles": [""], "tiling": False, "seed": 5.0, "batch_size": 1.0, "cfg_scale": 7.0,
        "override_settings": {
            "CLIP_stop_at_last_layers": "1", "samples_format": "JPG", "jpeg_quality": 90, "grid_save": False,
            "show_progress_every_n_steps": 5, "live_previews_enable": True, "save_images_add_number": False,
        },
    },
    "a warm-up with scripts that are off": {
        "prompt": "a red circle", "sampler_name": "Euler a", "send_images": True, "save_images": False,
        "alwayson_scripts": {
            "ADetailer": {"args": [False, False, {"ad_model": "face_yolov8n.pt"}]},
            "controlnet": {"args": [{"enabled": False, "module": "none"}, {"enabled": False}]},
            "Refiner": {"args": [False, "", 0.8]}, "Extra options": {"args": []},
        },
    },
    "a web page that sends one body to both endpoints": {
        "prompt": "a red circle", "init_images": [], "mask": None, "resize_mode": 0, "image_cfg_scale": 1.5,
        "mask_blur_x": 4, "mask_blur_y": 4, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True,
        "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0, "denoising_strength": 0.75,
        "override_settings": {"sd_model_checkpoint": "", "sd_vae": "Automatic", "randn_source": "CPU"},
    },
}  # fmt: skip
TXT2IMG = {name: {**_SMALL, **body} for name, body in TXT2IMG.items()}

#: Without `init_images`, which the test adds.
IMG2IMG: dict[str, dict[str, Any]] = {
    "A1111's defaults": {
        **{name: value for name, value in _DEFAULTS.items() if not name.startswith(("hr_", "firstphase"))},
        "resize_mode": 0, "denoising_strength": 0.75, "image_cfg_scale": None, "mask": None, "mask_blur": None,
        "mask_blur_x": 4, "mask_blur_y": 4, "mask_round": True, "inpainting_fill": 0, "inpaint_full_res": True,
        "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": None,
        "latent_mask": None, "include_init_images": False,
    },
    "a paint program's plugin": {
        "prompt": "a star", "denoising_strength": "0.6", "seed": -1, "sampler_index": "Euler a", "inpainting_fill": "1",
        "inpaint_full_res": False, "inpaint_full_res_padding": 32, "resize_mode": "0", "mask_blur": "0", "n_iter": 1,
        "include_init_images": True, "enable_hr": False, "restore_faces": "false",
    },
    "ControlNet's own test": {
        "prompt": "a star", "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
        "initial_noise_multiplier": 0, "mask_blur": 4, "inpaint_full_res": False, "alwayson_scripts": {},
    },
}  # fmt: skip
IMG2IMG = {name: {**_SMALL, **body} for name, body in IMG2IMG.items()}
