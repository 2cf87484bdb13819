"""Where models that were downloaded from the hub lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


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
