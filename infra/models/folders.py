"""What a diffusers folder says of itself: family, size, sampler and, where it is distilled, steps and guidance.

Only its JSON is read, never weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.models.families import FAMILIES, Family, base_class, family_of
from infra.models.json_files import read_object
from schemas import samplers
from schemas.defaults import CFG_SCALE, SIZE_MULTIPLE, STEPS
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: The family of a model by the width of the text that its UNet's cross attention reads.
WIDTHS = {128: "doodle", 768: "sd1", 1024: "sd2", 2048: "sdxl"}
_FALLBACK = "DPM++ 2M"  # works well with every Stable Diffusion
_MOST_LEVELS, _LARGEST_SAMPLE = 10, 4096  # of a VAE; latents of a denoiser's side
_STABLE_DIFFUSION = FAMILIES["StableDiffusionPipeline"]
#: What VAEs call the list with an entry for each level, and how many halvings come with it.
_LEVELS = (("encoder_block_out_channels", 1), ("temperal_downsample", 0), ("block_out_channels", 1))
#: How models that were distilled to few steps without guidance (ADD and its like) are called.
_TURBO = re.compile(r"(?<![a-z])(turbo|lightning)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a card takes from a model's own files and name."""

    width: int = 512  # pixels
    height: int = 512
    size_multiple: int = SIZE_MULTIPLE
    scheduler: str = _FALLBACK
    flow: bool = False  # only samplers for flow matching draw it
    one_sampler: bool = False  # only its own sampler draws it
    steps: int = STEPS
    cfg_scale: float = CFG_SCALE
    family: str = ""  # "" where that is not known
    config_hash: str = ""  # of the UNet's config
    prediction_type: str = ""  # "" where the scheduler's config does not say it


def read_folder(folder: Path, *names: str) -> Reading:
    """Read a diffusers folder; what it does not say has the defaults of Stable Diffusion 1.

    Args:
        names: what else the model is called, such as its hub id.

    Raises:
        Rejected: a file cannot be read, or holds a value that no pipeline has.
    """
    index = read_object(folder / "model_index.json")
    family = family_of(index.get("_class_name"), _components(index)) or _STABLE_DIFFUSION
    denoiser = _settings(folder / family.denoiser / "config.json")
    scheduler = _settings(folder / "scheduler" / "scheduler_config.json")
    factor = _factor(folder / "vae")
    wide, high = _native(folder / family.denoiser, denoiser, family, factor)
    called = (*names, folder.name, *(str(one.get("_name_or_path", "")) for one in (index, denoiser)))
    steps, cfg_scale = _numbers(family, index, denoiser, scheduler, called)
    return Reading(
        width=wide,
        height=high,
        size_multiple=_multiple(family, denoiser, factor),
        scheduler=canonical_sampler(scheduler.get("_class_name")),
        flow=is_flow(scheduler),
        one_sampler=family.one_sampler,
        steps=steps,
        cfg_scale=cfg_scale,
        family=unet_family(denoiser) if family.denoiser == "unet" else base_class(index["_class_name"]),
        config_hash=config_hash(denoiser) if denoiser else "",
        prediction_type=str(scheduler.get("prediction_type", "")),
    )


def check_family(name: str, own: str, family: str) -> None:
    """Refuse a folder of another family under the name of a model that is known: its numbers would be wrong.

    Args:
        own: the family of the model of that name.
        family: of the folder; one that is not known may be anything.

    Raises:
        Rejected: they differ.
    """
    if own and family != own and (family in WIDTHS.values() or family in FAMILIES):
        text = f"the folder has a model of the family {family}, and {name!r} is of {own}; use another name"
        raise Rejected("unsupported", text, field="model")


def unet_family(unet: Mapping[str, Any]) -> str:
    """The family of a UNet by its config: models of one family take the same LoRAs. "" for an empty config."""
    if not unet:
        return ""
    width = unet.get("cross_attention_dim")
    return WIDTHS.get(width if isinstance(width, int) else 0) or f"unet-{config_hash(unet)[:8]}"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config without what says nothing about the layers, such as the version that wrote it."""
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config belongs to a flow matching model, which other samplers draw wrongly."""
    return (
        str(scheduler.get("_class_name")).startswith("FlowMatch")
        or scheduler.get("use_flow_sigmas") is True
        or scheduler.get("prediction_type") == "flow_prediction"
    )


def is_distilled(family: Family, index: Mapping[str, Any], denoiser: Mapping[str, Any]) -> bool:
    """Whether configs say that a model draws in few steps and has no use for guidance."""
    unguided = family.guidance == "number" and denoiser.get("guidance_embeds") is False  # FLUX.1-schnell
    return unguided or index.get("is_distilled") is True


def _components(index: dict[str, Any]) -> dict[str, Any]:
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: value for name, value in parts.items() if value[0] is not None}


def _factor(vae: Path) -> int:
    """Pixels of a latent cell's side."""
    config = _settings(vae / "config.json")
    for name, less in _LEVELS:
        if name in config:
            levels = config[name]
            if not isinstance(levels, list) or not 1 <= len(levels) <= _MOST_LEVELS:
                raise _odd(vae, name)
            return int(2 ** (len(levels) - less))
    return 8


def _native(folder: Path, denoiser: dict[str, Any], family: Family, factor: int) -> tuple[int, int]:
    """(width, height) that the model was made for, in pixels."""
    if family.native:
        return family.native, family.native
    sample = denoiser.get("sample_size", 64)
    sides = sample if isinstance(sample, list) else [sample, sample]
    if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= _LARGEST_SAMPLE for side in sides):
        raise _odd(folder, "sample_size")
    return sides[1] * factor, sides[0] * factor


def _multiple(family: Family, denoiser: dict[str, Any], factor: int) -> int:
    """Pixels that widths and heights must be multiples of: a latent cell's, times the cells of a token."""
    patch = denoiser.get("patch_size", denoiser.get("all_patch_size", 1))
    patch = patch[0] if isinstance(patch, list) and patch else patch
    cells = max(family.pack, patch if type(patch) is int and 1 <= patch <= 16 else 1)
    return max(SIZE_MULTIPLE, factor * cells)


def read_name(*names: str) -> Reading:
    """What the names of a model tell whose files are not here yet."""
    return Reading(steps=_STABLE_DIFFUSION.few, cfg_scale=0) if _is_turbo(names) else Reading()


def _numbers(
    family: Family,
    index: dict[str, Any],
    denoiser: dict[str, Any],
    scheduler: dict[str, Any],
    called: Iterable[str],
) -> tuple[int, float]:
    """Steps and guidance: the family's, unless the files say that the model is distilled."""
    kind = scheduler.get("_class_name")
    if denoiser.get("time_cond_proj_dim") is not None:  # an LCM that takes guidance as a number
        return family.few, family.cfg_scale
    if is_distilled(family, index, denoiser) or kind in ("LCMScheduler", "TCDScheduler"):
        return family.few, 0
    # A name alone may lie; the schedule of such models ends at the last timestep, as every flow's does.
    may_be = is_flow(scheduler) or scheduler.get("timestep_spacing") == "trailing"
    return (family.few, 0) if may_be and _is_turbo(called) else (family.steps, family.cfg_scale)


def _is_turbo(names: Iterable[str]) -> bool:
    return any(_TURBO.search(name) for name in names)


def canonical_sampler(scheduler: object) -> str:
    """The name of the sampler whose class a folder names; for one that is not offered, one that draws as well."""
    if not isinstance(scheduler, str):
        return _FALLBACK
    try:
        return samplers.resolve(scheduler).name
    except Rejected:
        return _FALLBACK


def _settings(path: Path) -> dict[str, Any]:
    """A component's settings; {} when it has none."""
    return read_object(path) if path.exists() else {}


def _odd(folder: Path, field: str) -> Rejected:
    text = f"{folder / 'config.json'} has a {field} that no pipeline has; is it a diffusers folder?"
    return Rejected("unsupported", text, field="model")
