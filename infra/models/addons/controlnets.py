"""The ControlNets that an operator registers: folders with one of diffusers' classes, checked before they are used."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.models.addons.sources import Source, elements, named
from infra.models.folders import WIDTHS
from infra.models.json_files import read_object
from infra.models.model_files import ModelUnavailable
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger("dreamdrop.models")

CLASSES = ("ControlNetModel",)  # of diffusers; others are refused
_CONFIG, _FILES = ["config.json"], ["config.json", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class ControlNet:
    """One registered ControlNet."""

    name: str
    source: Source
    family: str = ""  # of the models that it fits; "" where that cannot be told

    def folder(self, *, offline: bool, cache: Path | None = None) -> Path:
        """The folder with its weights, downloaded if need be.

        Raises:
            Rejected: it is not a ControlNet that this worker can use.
            ModelUnavailable: it is on the hub, which does not provide it.
        """
        folder = self.source.path
        if self.source.on_hub:
            here = self.source.here(_FILES, cache)
            if here is None or not any(here.glob("*.safetensors")):
                if offline:
                    text = f"ControlNet {self.name!r} is not in the download cache, and the worker is offline"
                    raise ModelUnavailable(text)
                here = self.source.fetch(_FILES, cache)
            folder = here
        check(self.name, folder)
        return folder


def find_controlnets(texts: Iterable[str], *, fetch: bool = False) -> dict[str, ControlNet]:
    """Read `name=folder` and `name=hub:owner/name[@revision]` settings, and check each folder. Raises `Rejected`.

    Args:
        fetch: download the configs of those on the hub, without weights; an unreachable hub is not an error.
    """
    found: dict[str, ControlNet] = {}
    for name, text in named(texts, "ControlNet", "controlnet"):
        source = Source(text)
        folder = _config_of(source, fetch) if source.on_hub else source.path
        family = "" if folder is None else family_in(name, folder)
        if not source.on_hub:
            check(name, source.path)
        found[name] = ControlNet(name, source, family)
    return found


def _config_of(source: Source, fetch: bool) -> Path | None:
    """The folder with the config of one on the hub; None where it is not here."""
    folder = source.here(_CONFIG)
    if fetch and (folder is None or not (folder / "config.json").is_file()):
        try:
            folder = source.fetch(_CONFIG)
        except ModelUnavailable as error:  # it may be there when it is needed
            log.warning("the config of a ControlNet was not found", extra={"error": str(error)[:300]})
    return folder if folder is not None and (folder / "config.json").is_file() else None


def family_in(name: str, folder: Path) -> str:
    """The family of the models that a ControlNet fits, by its config; "" for a width that no known family has."""
    width = _config(name, folder).get("cross_attention_dim")
    return WIDTHS.get(width, "") if isinstance(width, int) else ""


def check(name: str, folder: Path) -> int:
    """Check a ControlNet's folder, and count the numbers in its weights. Raises `Rejected` with the first problem."""
    _config(name, folder)
    files = weights_in(folder)
    if not files:
        pickle = next((p for ending in ("bin", "pt", "pth") for p in folder.glob(f"*.{ending}")), None)
        why = (
            f"{pickle.name} is a pickle, which this worker never loads"
            if pickle
            else "it has no safetensors file"
        )
        raise _refused(name, folder, why)
    try:
        return sum(map(elements, files))
    except ValueError as error:
        raise _refused(name, folder, str(error)) from error


def weights_in(folder: Path) -> list[Path]:
    """Its safetensors files: those of full precision where there are several."""
    every = sorted(folder.glob("*.safetensors"))
    return [file for file in every if ".fp16" not in file.name] or every


def _config(name: str, folder: Path) -> dict[str, object]:
    if not (folder / "config.json").is_file():
        raise _refused(name, folder, "it has no config.json; a ControlNet is a folder as diffusers saves it")
    config = read_object(folder / "config.json")
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise _refused(
            name, folder, f"it holds a {kind}; known are {', '.join(CLASSES)} (of SD 1.x, 2.x and SDXL)"
        )
    return config


def _refused(name: str, folder: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"ControlNet {name!r} in {folder}: {why}", field="controlnet")
