"""What of the hub lies on this machine, and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.models.cards import ModelCard

#: Why a model of the hub is out of reach of renderers, which have no credentials.
GATED = "its owner gives it to who has accepted its terms: download it and give its folder with --models"


def hub_cache() -> Path:
    """Where the hub's library keeps downloads; it has the same rules."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = os.environ.get("HF_HOME") or f"{home}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{hub}/hub").expanduser()


def baked_cache() -> tuple[Path, ...]:
    """A second cache that is only read, such as the one in a container's image; empty if there is none.

    It has the layout of the first one, so that its models keep their pinned revisions.
    """
    folder = os.environ.get("DREAMDROP_BAKED_MODELS")
    return (Path(folder).expanduser(),) if folder else ()


def downloads(source: str, revision: str) -> list[Path]:
    """The folders in which the hub's library keeps downloads of `hub:owner/name`."""
    owner_name = source.removeprefix("hub:").replace("/", "--")
    found: list[Path] = []
    for cache in (*baked_cache(), hub_cache()):
        snapshots = cache / f"models--{owner_name}" / "snapshots"
        found += sorted(folder for folder in snapshots.glob(revision or "*") if folder.is_dir())
    return found


def has_weights(source: str, revision: str) -> bool:
    """Whether a source of a model is a folder or file on this machine, or was downloaded with its weights."""
    if not source.startswith("hub:"):
        path = Path(source).expanduser()
        return path.is_file() or (path / "model_index.json").is_file()
    return any(
        any(folder.glob(f"{part}/*.safetensors"))
        for folder in downloads(source, revision)
        for part in ("unet", "transformer")
    )


def folders_of(card: ModelCard) -> list[Path]:
    """The folders on this machine that have a model's configs, whether or not its weights are there."""
    found: list[Path] = []
    for source in card.sources:
        given = [] if source.startswith("hub:") else [Path(source).expanduser()]
        found += given or downloads(source, card.revision)
    return [folder for folder in found if (folder / "model_index.json").is_file()]
