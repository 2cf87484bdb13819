"""Find a model's folder, and refuse what is not safe to load, before anything is imported.

Only safetensors files are loaded: a pickle runs code when it is read, and so does a folder that
brings its own Python.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.families import FAMILIES, Family, family_of
from infra.models.hub_caches import GATED, baked_cache
from infra.models.json_files import read_json, read_object
from infra.models.safetensors_header import read_shapes
from infra.models.single_files import LIBRARIES, check_configs, read_single_file
from schemas.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from infra.models.cards import ModelCard

log = logging.getLogger("dreamdrop.models")

_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_WITHOUT_WEIGHTS = ("tokenizer", "scheduler", "processor")  # how components begin that have none
_CONFIGS = ["model_index.json", "*/config.json", "scheduler/scheduler_config.json"]
_WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja", "*/*.safetensors"]
#: Tensors with several dimensions that keep their precision where weights are kept in 8 bits.
_IN_FULL = re.compile(
    r"pos_embed|patch_embed|embed_tokens|(token|position)_embedding|shared\.|relative_attention_bias|\bwo\.|"
    r"lm_head|adaln_single|\b[tx]_embedder|cap_embedder|^proj_(in|out)\.|_token$|table"
)
_UNWANTED = [
    "safety_checker/*",
    "image_encoder/*",
    "*.fp16.*",
    "*.fp16-*",
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
    matrices: int  # of these, the ones that may be kept in 8 bits
    family: Family
    pipeline: str  # its class
    configs: Path | None = None  # of a model in one file: the folder with its configs and tokenizers

    def bytes_at(self, itemsize: int, quantize: str = "off") -> int:
        """The memory that the weights take at a precision of so many bytes a number, "fp8": or of one."""
        return self.elements * itemsize - (self.matrices * (itemsize - 1) if quantize == "fp8" else 0)


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
            folder = _fetch(source, card.revision, offline or card.gated, cache)
        except ModelUnavailable as error:
            tried.append(f"{source}: {GATED if card.gated and source.startswith('hub:') else error}")
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
    index = read_object(configs / "model_index.json")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    family = _family(str(configs), index, parts)
    return ModelFolder(  # which of its tensors belong to the VAE is not looked up: the most that it can need
        file, str(file), "", None, (), known.elements, 0, family, index["_class_name"], configs=configs
    )


def check_own(cards: Iterable[ModelCard]) -> None:
    """Check the folders on this machine that cards name, from their JSON and their weights' headers.

    Raises:
        Rejected: one cannot be served; the message says which, and why.
    """
    for card in cards:
        source = next((s for s in card.sources if not s.startswith("hub:") and Path(s).is_dir()), None)
        if source is not None and (Path(source) / "model_index.json").is_file():
            try:
                check(Path(source))
            except Rejected as error:
                raise Rejected(error.code, f"model {card.name!r}: {error.message}", field="model") from error


def check(folder: Path, *, source: str = "", revision: str = "") -> ModelFolder:
    """Check a diffusers folder. Raises `Rejected` with the first problem."""
    index = read_object(folder / "model_index.json")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    family = _family(str(folder), index, parts)
    code = next((p for p in folder.rglob("*.py")), None)
    if code is not None:
        raise _refuse(
            folder, f"it brings its own code ({code.relative_to(folder)}), which this worker never runs"
        )
    for name, (library, _) in parts.items():
        if name not in _LEFT_OUT and library is not None and library not in LIBRARIES:
            raise _refuse(folder, f"{name} comes from {library!r}, not from diffusers or transformers")
    for config in (folder / "model_index.json", *folder.glob("*/*.json")):
        keys = read_json(config)
        if isinstance(keys, dict) and ("auto_map" in keys or "custom_pipeline" in keys):
            raise _refuse(folder, f"{config.relative_to(folder)} asks for code from elsewhere")
    present = [name for name in parts if name not in _LEFT_OUT and parts[name][0] is not None]
    _check_complete(folder, family, parts, present)
    weights = [name for name in present if not name.startswith(_WITHOUT_WEIGHTS)]
    variant, elements, matrices = None, 0, 0
    for name in weights:
        files, variant = _weights(folder, name, variant)
        shapes = [item for file in files for item in _shapes(file).items()]
        elements += sum(math.prod(shape) for _, shape in shapes)
        if name == family.denoiser or name.startswith("text_encoder"):
            matrices += sum(math.prod(shape) for tensor, shape in shapes if _is_matrix(tensor, shape))
    left_out = tuple(name for name in _LEFT_OUT if name in index)
    return ModelFolder(
        folder,
        source or str(folder),
        revision,
        variant,
        left_out,
        elements,
        matrices,
        family,
        index["_class_name"],
    )


def fetch_configs(source: str, revision: str) -> None:
    """Download the configs of `hub:owner/name` and nothing large, so that its defaults are known before its weights.

    A hub that does not answer is no error: then the name alone tells.

    Raises:
        Rejected: it is a pipeline that cannot be drawn here.
    """
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {"repo_id": source.removeprefix("hub:"), "revision": revision or None}
    try:
        folder = Path(snapshot_download(**wanted, allow_patterns=_CONFIGS))
    except Exception as error:  # the hub's library has many errors for "not now"
        log.warning(
            "the configs of a model were not found", extra={"model": source, "error": type(error).__name__}
        )
        return
    check_index(folder, source=source)


def check_index(folder: Path, *, source: str = "") -> None:
    """Judge a pipeline by its `model_index.json` alone, before anything large is downloaded. Raises `Rejected`."""
    index = read_object(folder / "model_index.json")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    _family(source or str(folder), index, parts)


def _family(place: str, index: dict[str, Any], parts: dict[str, Any]) -> Family:
    kind = index.get("_class_name")
    used = {name: value for name, value in parts.items() if value[0] is not None and name not in _LEFT_OUT}
    family = family_of(kind, used)
    if family is None:
        known = ", ".join(f"{name} ({one.label})" for name, one in FAMILIES.items())
        hint = (
            "; give its ControlNet by --controlnets, and the model without it" if "controlnet" in used else ""
        )
        why = f"its pipeline is {kind!r}, which is not drawn here{hint}; known are {known}"
        raise Rejected("unsupported", f"the model in {place} is refused: {why}", field="model")
    return family


def _check_complete(folder: Path, family: Family, parts: dict[str, Any], present: list[str]) -> None:
    """Refuse a folder that lacks what its pipeline needs."""
    for name in parts if family.joins else ():  # of others it is not known what they can do without
        if name not in present and name not in (*_LEFT_OUT, *family.optional):
            raise _refuse(folder, f"its {name} is missing (null in model_index.json)")
    for name in present:
        if not (folder / name).is_dir():
            raise _refuse(
                folder, f"its {name} is missing: model_index.json names it, and it has no such folder"
            )


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


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether `--quantize fp8` keeps a tensor in 8 bits; see `consumer.engine.loading.quantizing`."""
    return len(shape) > 1 and _IN_FULL.search(name) is None


def _shapes(file: Path) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, read from its header."""
    try:
        return read_shapes(file)
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
    from huggingface_hub import hf_hub_download, snapshot_download

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
            if any(any(folder.glob(f"{part}/*.safetensors")) for part in ("unet", "transformer")):
                return folder  # else only its configs were downloaded
        except Exception:  # the hub's library has many errors for "not in the cache"
            offline_because = "not in the download cache, and the worker is offline"
    if offline:
        raise ModelUnavailable(offline_because)
    try:
        repository = {name: wanted[name] for name in ("repo_id", "revision")}
        index = Path(hf_hub_download(**repository, filename="model_index.json", cache_dir=cache))
        check_index(index.parent, source=source)
        return Path(snapshot_download(**wanted, cache_dir=cache))
    except Rejected:
        raise
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
