"""What the configs of a diffusers folder say about a model: its family, its size, its scheduler. No torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: The family of a built-in model, by its name.
BUILT_IN_FAMILIES = {"doodle": "doodle", "sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
#: The family by the width of the text that the UNet's cross attention reads.
WIDTHS = {128: "doodle", 768: "sd1", 1024: "sd2", 2048: "sdxl"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a folder's configs say; "" and 0 where they do not say it."""

    family: str = ""
    config_hash: str = ""  # of the UNet's config
    prediction_type: str = ""
    native_width: int = 0  # pixels
    native_height: int = 0  # pixels
    scheduler: str = ""  # class name


def read_facts(folder: Path) -> Facts:
    """Read a diffusers folder's configs; what cannot be read counts as not said."""
    unet, vae = _load(folder / "unet" / "config.json"), _load(folder / "vae" / "config.json")
    scheduler = _load(folder / "scheduler" / "scheduler_config.json")
    scale = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    sample = unet.get("sample_size", 0)
    high, wide = (sample, sample) if isinstance(sample, int) else (sample[0], sample[1])
    return Facts(
        family=family_of(unet),
        config_hash=config_hash(unet) if unet else "",
        prediction_type=str(scheduler.get("prediction_type", "")),
        native_width=wide * scale,
        native_height=high * scale,
        scheduler=str(scheduler.get("_class_name", "")),
    )


def family_of(unet: Mapping[str, Any]) -> str:
    """The family of a UNet by its config: models of one family take the same LoRAs."""
    if not unet:
        return ""
    width = unet.get("cross_attention_dim")
    return WIDTHS.get(width if isinstance(width, int) else 0) or f"unet-{config_hash(unet)[:8]}"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config without what says nothing about the layers, such as the version that wrote it."""
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
