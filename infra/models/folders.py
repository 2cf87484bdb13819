"""What a diffusers folder says of itself: family, size, sampler and, where it is distilled, steps and guidance.

Only its JSON is read, never weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
_MOST_LEVELS, _LARGEST_SAMPLE = 10, 4096  # of a VAE; latents of a UNet's side
_FEW = 4  # steps of distilled models: their cards say 1 to 9, and 4 suits most
#: How models that were distilled to few steps without guidance (ADD and its like) are called.
_TURBO = re.compile(r"(?<![a-z])(turbo|lightning)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a card takes from a model's own files and name."""

    width: int = 512  # pixels
    height: int = 512
    size_multiple: int = SIZE_MULTIPLE
    scheduler: str = _FALLBACK
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
    unet, vae = _settings(folder / "unet" / "config.json"), _settings(folder / "vae" / "config.json")
    scheduler = _settings(folder / "scheduler" / "scheduler_config.json")
    levels, sample = vae.get("block_out_channels", [0] * 4), unet.get("sample_size", 64)
    if not isinstance(levels, list) or not 1 <= len(levels) <= _MOST_LEVELS:
        raise _odd(folder / "vae", "block_out_channels")
    sides = sample if isinstance(sample, list) else [sample, sample]
    if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= _LARGEST_SAMPLE for side in sides):
        raise _odd(folder / "unet", "sample_size")
    factor = 2 ** (len(levels) - 1)
    called = (*names, folder.name, *(str(one.get("_name_or_path", "")) for one in (index, unet)))
    steps, cfg_scale = _numbers(index, unet, scheduler, called)
    return Reading(
        width=sides[1] * factor,
        height=sides[0] * factor,
        size_multiple=max(SIZE_MULTIPLE, factor),
        scheduler=_canonical(scheduler.get("_class_name")),
        steps=steps,
        cfg_scale=cfg_scale,
        family=family_of(unet),
        config_hash=config_hash(unet) if unet else "",
        prediction_type=str(scheduler.get("prediction_type", "")),
    )


def family_of(unet: Mapping[str, Any]) -> str:
    """The family of a UNet by its config: models of one family take the same LoRAs. "" for an empty config."""
    if not unet:
        return ""
    width = unet.get("cross_attention_dim")
    return WIDTHS.get(width if isinstance(width, int) else 0) or f"unet-{config_hash(unet)[:8]}"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config without what says nothing about the layers, such as the version that wrote it."""
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_name(*names: str) -> Reading:
    """What the names of a model tell whose files are not here yet."""
    return Reading(steps=_FEW, cfg_scale=0) if _is_turbo(names) else Reading()


def _numbers(
    index: dict[str, Any], unet: dict[str, Any], scheduler: dict[str, Any], called: Iterable[str]
) -> tuple[int, float]:
    """Steps and guidance: the documented ones, unless the files say that the model is distilled."""
    kind = scheduler.get("_class_name")
    if (
        unet.get("time_cond_proj_dim") is not None
    ):  # an LCM that takes guidance as a number; 7 is right for it
        return _FEW, CFG_SCALE
    if index.get("is_distilled") is True or kind in ("LCMScheduler", "TCDScheduler"):
        return _FEW, 0
    # A name alone may lie; the schedule of such models ends at the last timestep.
    if scheduler.get("timestep_spacing") == "trailing" and _is_turbo(called):
        return _FEW, 0
    return STEPS, CFG_SCALE


def _is_turbo(names: Iterable[str]) -> bool:
    return any(_TURBO.search(name) for name in names)


def _canonical(scheduler: object) -> str:
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
