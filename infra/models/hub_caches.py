"""The hub: what of it is on this machine, and whether it can be reached."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from infra.models.cards import ModelCard

#: Why a model of the hub is out of reach of renderers, which have no credentials.
GATED = "its owner gives it only to those who have accepted its terms: download it and give its folder with --models"


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


def is_of_hub(source: str) -> bool:
    """Whether a model's source is a repository of the hub."""
    return source.startswith("hub:")


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


def is_here(card: ModelCard) -> bool:
    """Whether a source of the model is a folder on this machine, or in the hub library's cache."""
    return any(has_weights(source, card.revision) for source in card.sources)


def folders_of(card: ModelCard) -> list[Path]:
    """The folders on this machine that have a model's configs, whether or not its weights are there."""
    found: list[Path] = []
    for source in card.sources:
        given = [] if source.startswith("hub:") else [Path(source).expanduser()]
        found += given or downloads(source, card.revision)
    return [folder for folder in found if (folder / "model_index.json").is_file()]


class Hub:
    """Whether the hub can be reached, which is asked at most once a minute. For several threads.

    The hub's own library finds out only after many tries, and whoever loads models waits for it meanwhile.
    """

    EVERY = 60.0  # seconds for which an answer counts
    TIMEOUT = 5.0  # seconds that a connection may take

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asking = threading.Lock()
        self._until = float("-inf")
        self._why = ""

    @property
    def why(self) -> str:
        """Why it could not be reached a moment ago; "" if it could, or nobody has asked."""
        return self._why if self._clock() < self._until else ""

    def why_not(self) -> str:
        """Why it cannot be reached; "" if it can. Takes at most `TIMEOUT`."""
        with self._asking:
            if self._clock() >= self._until:
                self._why = self._ask()
                self._until = self._clock() + self.EVERY
            return self._why

    def _ask(self) -> str:
        address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        proxy = getproxies().get(address.scheme)
        if proxy and not proxy_bypass(address.hostname or ""):
            address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = address.hostname or "", address.port or {"https": 443}.get(address.scheme, 80)
        answers: list[str] = []

        def connect() -> None:
            try:
                socket.create_connection((host, port), self.TIMEOUT).close()
                answers.append("")
            except OSError as error:
                answers.append(f"{host}: {error.strerror or error}")

        # A thread, because the lookup of a name has no timeout.
        asking = threading.Thread(target=connect, daemon=True)
        asking.start()
        asking.join(self.TIMEOUT)
        return answers[0] if answers else f"{host}: no answer within {self.TIMEOUT:g} s"


HUB = Hub()  # of this process
