"""Find a model's folder, and refuse what is not safe to load, before anything is imported.

Only safetensors files are loaded: a pickle runs code when it is read, and so does a folder that
brings its own Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.hub_caches import baked_cache
from infra.models.json_files import read_json, read_object
from infra.models.safetensors_header import read_shapes
from infra.models.single_files import LIBRARIES, check_configs, read_single_file
from schemas.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from infra.models.cards import ModelCard

_FAMILIES = tuple(
    f"StableDiffusion{size}{kind}Pipeline" for size in ("", "XL") for kind in ("", "Img2Img", "Inpaint")
)
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
_UNWANTED = [
    "safety_checker/*",
    "image_encoder/*",
    "*.fp16.*",
    "*non_ema*",
    "*openvino*",
    "*onnx*",
    "vae_*/*",
]


class ModelUnavailable(Unavailable):
    """The model is known, but its weights are not available to this worker now."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that was checked and may be loaded."""

    path: Path  # or the one file that holds the whole model
    source: str
    revision: str
    variant: str | None  # such as "fp16", where the folder holds only that precision
    left_out: tuple[str, ...]  # components that are not loaded
    elements: int  # numbers in the weights
    configs: Path | None = None  # of a model in one file: the folder with its configs and tokenizers

    def bytes_at(self, itemsize: int) -> int:
        """The memory that the weights take at a precision of so many bytes a number."""
        return self.elements * itemsize


def find(card: ModelCard, *, offline: bool, cache: Path | None) -> ModelFolder:
    """Try the card's sources in order; the first that is available must be safe.

    Raises:
        Rejected: a source is available, but is not safe or not supported.
        ModelUnavailable: no source is available; the message says what was tried.
    """
    tried = []
    for source in card.sources:
        if (file := Path(source).expanduser()).is_file():
            return _single_file(file, card)
        try:
            folder = _fetch(source, card.revision, offline, cache)
        except ModelUnavailable as error:
            tried.append(f"{source}: {error}")
            continue
        pinned = source.startswith("hub:") or not any(s.startswith("hub:") for s in card.sources)
        return check(folder, source=source, revision=card.revision if pinned else "")
    raise ModelUnavailable(
        f"model {card.name!r} is not here. Tried {'; '.join(tried)}. Give the worker a diffusers "
        f"folder with it, as {card.name}=/path/to/folder, or access to the hub"
    )


def _single_file(file: Path, card: ModelCard) -> ModelFolder:
    known, configs = read_single_file(file), Path(card.configs)
    check_configs(known, configs)
    return ModelFolder(file, str(file), "", None, (), known.elements, configs)


def check(folder: Path, *, source: str = "", revision: str = "") -> ModelFolder:
    """Check a diffusers folder. Raises `Rejected` with the first problem."""
    index = read_object(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in _FAMILIES:
        raise _refuse(folder, f"its pipeline is {kind!r}; known are {', '.join(_FAMILIES)}")
    code = next((p for p in folder.rglob("*.py")), None)
    if code is not None:
        raise _refuse(
            folder, f"it brings its own code ({code.relative_to(folder)}), which this worker never runs"
        )
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    for name, (library, _) in parts.items():
        if name not in _LEFT_OUT and library is not None and library not in LIBRARIES:
            raise _refuse(folder, f"{name} comes from {library!r}, not from diffusers or transformers")
    for config in (folder / "model_index.json", *folder.glob("*/*.json")):
        keys = read_json(config)
        if isinstance(keys, dict) and ("auto_map" in keys or "custom_pipeline" in keys):
            raise _refuse(folder, f"{config.relative_to(folder)} asks for code from elsewhere")
    weights = [name for name in _WEIGHTS if parts.get(name, [None])[0] is not None]
    variant, elements = None, 0
    for name in weights:
        files, variant = _weights(folder, name, variant)
        elements += sum(_elements(file) for file in files)
    left_out = tuple(name for name in _LEFT_OUT if name in index)
    return ModelFolder(folder, source or str(folder), revision, variant, left_out, elements)


def _weights(folder: Path, name: str, variant: str | None) -> tuple[list[Path], str | None]:
    every = sorted((folder / name).glob("*.safetensors"))
    plain = [file for file in every if ".fp16" not in file.name and "non_ema" not in file.name]
    if plain:
        return plain, variant
    if every:
        return [file for file in every if ".fp16" in file.name], "fp16"
    pickles = [p.name for ending in ("bin", "pt", "pth", "ckpt") for p in (folder / name).glob(f"*.{ending}")]
    if pickles:
        raise _refuse(
            folder,
            f"{name} is a pickle ({pickles[0]}), which this worker never loads: convert it to safetensors",
        )
    raise _refuse(folder, f"{name} has no safetensors file")


def _elements(file: Path) -> int:
    """How many numbers a safetensors file holds, read from its header."""
    try:
        return sum(map(math.prod, read_shapes(file).values()))
    except (OSError, ValueError) as error:
        raise Rejected(
            "unsupported", f"{file} is not a whole safetensors file: {error}", field="model"
        ) from error


def _fetch(source: str, revision: str, offline: bool, cache: Path | None) -> Path:
    if not source.startswith("hub:"):
        folder = Path(source).expanduser()
        if not (folder / "model_index.json").is_file():
            raise ModelUnavailable(
                "it has no model_index.json" if folder.is_dir() else "no such folder or file"
            )
        return folder
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {
        "repo_id": source.removeprefix("hub:"),
        "revision": revision or None,
        "allow_patterns": _WANTED,
        "ignore_patterns": _UNWANTED,
    }
    offline_because = "not complete in the download cache, and the worker is offline"
    for place in (*baked_cache(), cache):
        try:
            folder = Path(snapshot_download(**wanted, cache_dir=place, local_files_only=True))
            if any(folder.glob("unet/*.safetensors")):  # else only its configs were downloaded
                return folder
        except Exception:  # the hub's library has many errors for "not in the cache"
            offline_because = "not in the download cache, and the worker is offline"
    if offline:
        raise ModelUnavailable(offline_because)
    try:
        return Path(snapshot_download(**wanted, cache_dir=cache))
    except Exception as error:  # network, proxy, permission, revision: all mean the same here
        text = " ".join(str(error).split())  # the hub's library writes paragraphs
        raise ModelUnavailable(f"the hub did not provide it ({type(error).__name__}: {text})") from error


def download_configs(card: ModelCard) -> Path:
    """The JSON files and tokenizers of a model on the hub: a few MB, in the hub library's cache.

    Raises:
        ModelUnavailable: the hub does not provide them, or its library is not installed.
    """
    source = next(source for source in card.sources if source.startswith("hub:"))
    try:
        from huggingface_hub import snapshot_download

        wanted = [pattern for pattern in _WANTED if not pattern.endswith(".safetensors")]
        return Path(
            snapshot_download(
                source.removeprefix("hub:"), revision=card.revision or None, allow_patterns=wanted,
                ignore_patterns=_UNWANTED,
            )
        )  # fmt: skip
    except Exception as error:  # network, proxy, permission, revision: all mean the same here
        raise ModelUnavailable(f"the hub did not provide them ({type(error).__name__})") from error


def _refuse(folder: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"the model in {folder} is refused: {why}", field="model")
