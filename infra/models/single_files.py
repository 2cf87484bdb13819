"""A whole model in one .safetensors file, as community sites share Stable Diffusion 1, 2 and XL. No torch here.

Such a file has the weights, under the names of the original code, and neither configs nor a tokenizer. Those are taken
from a diffusers folder of the same family, which needs no weights.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.folders import WIDTHS, read_folder
from infra.models.hub_caches import folders_of
from infra.models.json_files import read_object
from infra.models.lora_names import format_of
from infra.models.safetensors_header import Entry, Header, read_header
from schemas.defaults import CFG_SCALE, STEPS
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from infra.models.cards import ModelCard

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREDICTIONS = ("epsilon", "v_prediction")
#: What models of a family predict unless their file says otherwise; those of SD 2 do both.
USUAL = {"sd1": "epsilon", "sdxl": "epsilon"}
_TITLES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
_UNET = "model.diffusion_model."
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model."
_TEXT = ("cond_stage_model.", "conditioner.embedders.")
_SECOND_TEXT = "conditioner.embedders.1."
_CROSS = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
_PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": (_UNET,),
    "vae": (_VAE,),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": (_SECOND_TEXT,),
}
_TYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # the widest first
_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
LIBRARIES = ("diffusers", "transformers")  # whose classes are loaded
CONFIGS = (".json", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class SingleFile:
    """What a file's header says of its model."""

    path: Path
    width: int  # of the text that its UNet reads
    channels: int  # of its UNet's input: 4, or 9 for inpainting
    text_encoders: int
    dtypes: Mapping[str, str]  # part of the pipeline to the widest type of its numbers, as torch calls it
    elements: int  # numbers in the weights
    prediction_type: str  # "" where the file does not say it
    zero_snr: bool  # trained with noise schedules that end without signal

    @property
    def family(self) -> str:
        """sd1, sd2, sdxl, doodle; "" for another."""
        return WIDTHS.get(self.width, "")

    @property
    def title(self) -> str:
        return _TITLES.get(self.family, self.family or "an unknown family")


def is_checkpoint(header: Header) -> bool:
    """Whether a safetensors file holds a whole model, or at least a UNet, rather than a LoRA."""
    return any(name.startswith((_UNET, _VAE, *_TEXT)) for name in header.entries)


def read_single_file(path: Path) -> SingleFile:
    """Read the header of a checkpoint.

    Raises:
        Rejected: it is none, or not one of these families; the message says what it is instead.
    """
    if path.suffix in PICKLES:
        raise _refused(path, "it is a pickle, which may run code when it is read; use a .safetensors file")
    if path.suffix != ".safetensors":
        raise _refused(path, "it is not a .safetensors file")
    try:
        header = read_header(path)
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _refused(path, str(error)) from error
    entries = header.entries
    first = entries.get(_FIRST)
    if first is None or len(first.shape) != 4:
        raise _refused(path, _what_else(entries))
    for part, prefix in (("VAE", (_VAE,)), ("text encoder", _TEXT)):
        if not any(name.startswith(prefix) for name in entries):
            raise _refused(path, f"it has no {part}; it is not a whole model")
    if any(name.startswith("conditioner.") for name in entries) and not any(
        name.startswith(_SECOND_TEXT) for name in entries
    ):
        raise _refused(
            path,
            "it has one of SDXL's two text encoders; it is a refiner, which is read from a diffusers folder only",
        )
    if first.shape[1] not in (4, 9):
        raise _refused(path, f"its UNet takes {first.shape[1]} channels; 4, or 9 for inpainting, can be used")
    own = [entry for name, entry in entries.items() if name.startswith((_UNET, _VAE, *_TEXT))]
    odd = next((e.dtype for e in own if e.dtype not in (*_TYPES, "I64", "I32", "BOOL")), None)
    if odd:
        raise _refused(path, f"its numbers are of the type {odd}; use a file of {', '.join(_TYPES)}")
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    return SingleFile(
        path=path,
        width=next((e.shape[-1] for name, e in entries.items() if _CROSS.fullmatch(name) and e.shape), 0),
        channels=first.shape[1],
        text_encoders=2 if any(name.startswith(_SECOND_TEXT) for name in entries) else 1,
        dtypes={
            part: _widest(kinds)
            for part, prefixes in _PREFIXES.items()
            if (kinds := {entry.dtype for name, entry in entries.items() if name.startswith(prefixes)})
        },
        elements=sum(math.prod(entry.shape) for entry in own),
        prediction_type="v_prediction"
        if "v_pred" in entries or said.startswith("v")
        else "epsilon"
        if said.startswith("epsilon")
        else "",
        zero_snr="ztsnr" in entries,
    )


def _widest(kinds: Collection[str]) -> str:
    return next((name for kind, name in _TYPES.items() if kind in kinds), "float32")


def _what_else(entries: Mapping[str, Entry]) -> str:
    """What a file is that holds no UNet of these families."""
    if any(name.startswith(_UNET) or "double_blocks." in name or "joint_blocks." in name for name in entries):
        family = "another family (a transformer, such as Flux or SD 3)"
        return f"it is made for {family}, which is read from a diffusers folder only"
    if format_of(entries):
        return "it is a LoRA, not a whole model"
    if not entries:
        return "it holds no tensors"
    return f"{next(iter(entries))!r} is neither a tensor of a LoRA nor of a whole model in one file"


def check_configs(file: SingleFile, folder: Path) -> None:
    """Whether a diffusers folder has the configs and tokenizers of such a model. Raises `Rejected`."""
    index = read_object(folder / "model_index.json")
    width = read_object(folder / "unet" / "config.json").get("cross_attention_dim")
    two = "XL" in str(index.get("_class_name"))
    if width != file.width or two != (file.text_encoders == 2):
        raise _unfit(
            folder,
            f"it is of another family: {file.path.name} is {file.title}, and its UNet reads texts of the width "
            f"{file.width}, not {width}",
        )
    for part in _parts(index):
        library = next(iter(index[part]), None)
        if library not in LIBRARIES:  # diffusers would import it
            raise _unfit(folder, f"its {part} comes from {library!r}, not from {' or '.join(LIBRARIES)}")
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        if part.startswith("tokenizer"):
            if not any((folder / part).glob("*.json")):
                raise _unfit(folder, f"it has no {part}")
        elif not (folder / part / name).is_file():
            raise _unfit(folder, f"it has no {part}/{name}")


def suits(file: SingleFile, folder: Path) -> bool:
    """Whether a folder that nobody named has the configs of such a model: of its family, and not distilled."""
    try:
        read = read_folder(folder)
        check_configs(file, folder)
    except Rejected:
        return False
    usual = USUAL.get(file.family, read.prediction_type)
    plain = (read.steps, read.cfg_scale) == (STEPS, CFG_SCALE)
    return read.family == file.family != "" and plain and read.prediction_type in ("", usual)


def write_configs(file: SingleFile, configs: Path, target: Path, prediction_type: str = "") -> str:
    """Write the configs that this file is loaded with; returns the name of its pipeline's class.

    Args:
        target: an empty folder.
        prediction_type: instead of what the file says, or else the configs.
    """
    index = read_object(configs / "model_index.json")
    parts = _parts(index)
    for part in parts:
        (target / part).mkdir()
        for path in sorted((configs / part).iterdir()):
            if path.suffix in CONFIGS and not path.name.endswith(".index.json") and path.is_file():
                shutil.copyfile(path, target / part / path.name)
    scheduler: dict[str, Any] = {}
    if prediction := prediction_type or file.prediction_type:
        scheduler["prediction_type"] = prediction
    if file.zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    _change(target / "scheduler" / "scheduler_config.json", scheduler)
    _change(target / "unet" / "config.json", {"in_channels": file.channels})
    xl = "XL" if file.text_encoders == 2 else ""
    pipeline = f"StableDiffusion{xl}{'Inpaint' if file.channels == 9 else ''}Pipeline"
    kept = {name: value for name, value in index.items() if not isinstance(value, list) or name in parts}
    settings = {} if xl else {"safety_checker": [None, None], "requires_safety_checker": False}
    (target / "model_index.json").write_text(json.dumps({**kept, **settings, "_class_name": pipeline}))
    return pipeline


def _change(path: Path, fields: dict[str, Any]) -> None:
    kept = {name: value for name, value in read_object(path).items() if name != "_name_or_path"}
    path.write_text(json.dumps({**kept, **fields}))


def _parts(index: Mapping[str, Any]) -> list[str]:
    """The folders of a pipeline that such a file needs."""
    return [name for name in _PARTS if isinstance(value := index.get(name), list) and value[:1] != [None]]


def _unfit(folder: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"the configs in {folder} cannot be used: {why}", field="config")


def _refused(path: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"{path}: {why}", field="model")


def find_configs(file: SingleFile, given: str, cards: Iterable[ModelCard]) -> Path | None:
    """The folder with the configs of a model in one file.

    Args:
        given: a folder, or the name of one of the cards; "" looks for a model of the same family.

    Raises:
        Rejected: what is given is not on this machine, or does not fit.
    """
    by_name = {card.name: card for card in cards}
    if not given:
        every = (folder for card in by_name.values() for folder in folders_of(card))
        return next((folder for folder in every if suits(file, folder)), None)
    folder = Path(given).expanduser()
    if not folder.is_dir() and given in by_name:
        if not (folders := folders_of(by_name[given])):
            text = f"are to be those of {given!r}, of which no file is on this machine"
            raise Rejected.of_field("configs", text)
        folder = folders[0]
    check_configs(file, folder)
    return folder


def need_configs(file: SingleFile, cards: Iterable[ModelCard]) -> str:
    """What to do when no configs of a model in one file are on this machine, in sentences.

    Args:
        cards: of models that can be downloaded.
    """
    text = (
        f"{file.path} is a whole model in one file ({file.title}). It holds neither configs nor a tokenizer, and no "
        "model of its family is on this machine to take them from."
    )
    card = next((card for card in cards if card.family == file.family), None)
    if card is not None:
        at = f" --revision {card.revision}" if card.revision else ""
        text += (
            f" Where there is a network, `hf download {card.sources[0].removeprefix('hub:')}{at} --include '*.json' "
            "'*.txt' --local-dir FOLDER` fetches them: a few MB, no weights."
        )
    return text
