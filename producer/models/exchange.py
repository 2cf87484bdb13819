"""Models from elsewhere on their way into a store, and published ones on their way out of it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.models import published
from infra.models.cards import BUILT_IN
from infra.models.folders import WIDTHS, read_folder
from infra.models.lora_formats import convert, header_of
from infra.models.lora_names import format_of, split
from infra.models.safetensors_header import read_header
from infra.models.single_files import PICKLES, is_checkpoint
from infra.stores.store import WrongContent
from schemas.errors import Rejected
from schemas.models import LORA_FILE, PublishedCard, check_name, is_path, version_prefix

if TYPE_CHECKING:
    from infra.stores.store import Store

Report = Callable[[str, int, int], None]  # a file's path, the bytes of it that are copied, its size

_PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
_KINDS = (".json", ".txt", ".safetensors", ".model")
_PIPELINE = re.compile(r"StableDiffusion(XL)?(Img2Img|Inpaint)?Pipeline")

_ENCODERS_DORA = re.compile(r"text_encoder.*\.lora_magnitude_vector|lora_te.*\.dora_scale")


def prepare(
    source: Path,
    name: str,
    scratch: Path,
    *,
    base: str = "",
    weight: float = 1.0,
    trigger: tuple[str, ...] = (),
    licence: str = "",
) -> tuple[Path, PublishedCard, list[str]]:
    """(folder to publish, its card, files that are left out) for a diffusers folder or a LoRA's file.

    Args:
        scratch: an empty folder, which gets links to the files.

    Raises:
        Rejected: it cannot be published; the message says what it is, and what to do.
    """
    check_name(name)
    if not source.exists():
        raise _refused(source, "there is no such file or folder")
    if not math.isfinite(weight):
        raise Rejected.of_field("weight", f"is {weight}; it should be a number, such as 0.8")
    common: dict[str, Any] = {"name": name, "trigger_words": trigger, "licence": licence}
    if source.is_dir() and not (source / "model_index.json").is_file():
        files = sorted(source.glob("*.safetensors"))
        if len(files) != 1:
            raise _refused(
                source, "it is neither a diffusers folder (no model_index.json) nor holds one LoRA"
            )
        source = files[0]
    if source.is_file():
        family = _family_of_lora(source)
        base = base or _base_of(source, family)
        built_in = next((card for card in BUILT_IN if card.name == base), None)
        if built_in is not None and family not in ("", built_in.family):
            raise _refused(
                source, f"it is made for models of the family {family}; {base} is of {built_in.family}"
            )
        entries = header_of(source).entries
        if format_of(entries) == "kohya" and any(name.endswith(".dora_scale") for name in entries):
            convert(source, scratch / LORA_FILE, "diffusers")  # which reads no DoRA in Kohya's spelling
        else:
            (scratch / LORA_FILE).symlink_to(source.absolute())
        card = PublishedCard(kind="lora", base=base, family=family, weight=weight, **common)
        return scratch, card, []
    if weight != 1:
        raise _refused(source, "it is a full model; --weight is for a LoRA")
    left_out = _link_folder(source, scratch)
    read = read_folder(source, name)
    card = PublishedCard(
        kind="full",
        base=base,
        family=read.family,
        prediction_type=read.prediction_type,
        config_hash=read.config_hash,
        native_width=read.width,
        native_height=read.height,
        scheduler=read.scheduler,
        steps=read.steps,
        cfg_scale=read.cfg_scale,
        **common,
    )
    return scratch, card, left_out


def is_single_file(source: Path) -> bool:
    """Whether it is, or claims to be, a whole model in one file. Raises `Rejected` for a pickle."""
    if source.suffix in PICKLES and source.is_file():
        raise _refused(source, "it is a pickle, which may run code when it is read; use a .safetensors file")
    try:
        return source.is_file() and is_checkpoint(read_header(source))
    except ValueError as error:
        raise _refused(source, str(error)) from error


def _link_folder(source: Path, scratch: Path) -> list[str]:
    """Link what a worker loads of a diffusers folder; returns the other files. Raises `Rejected`."""
    try:
        index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
        pipeline = str(index["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(source, "its model_index.json cannot be read") from error
    if not _PIPELINE.fullmatch(pipeline):
        raise _refused(source, f"its pipeline is {pipeline}; workers draw with Stable Diffusion 1, 2 and XL")
    left_out = []
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        inner = path.relative_to(source).as_posix()
        if path.suffix == ".py":
            raise _refused(source, f"it brings its own code ({inner}), which no worker runs")
        part = inner.partition("/")[0]
        second = ".fp16." in path.name or "non_ema" in path.name or "openvino" in path.name
        wanted = inner == "model_index.json" or (part in _PARTS and inner.count("/") == 1)
        if not wanted or second or path.suffix not in _KINDS or not is_path(inner):
            left_out.append(inner)
            continue
        link = scratch / inner
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())
    for part in ("unet", "vae", "text_encoder"):
        if any((scratch / part).glob("*.safetensors")):
            continue
        pickles = [path.name for path in (source / part).glob("*") if path.suffix in PICKLES]
        why = f"is a pickle ({pickles[0]})" if pickles else "has no full-precision .safetensors file"
        raise _refused(
            source, f"its {part} {why}; save it with save_pretrained(..., safe_serialization=True)"
        )
    return left_out


def _family_of_lora(source: Path) -> str:
    """The family that a LoRA's tensors are made for; "" where they do not tell. Raises `Rejected`."""
    entries = header_of(source).entries
    spelling = format_of(entries)
    if odd := next((name for name in entries if not spelling or not split(name, spelling)), None):
        what = "a whole model" if spelling is None else "what its other tensors are part of"
        raise _refused(
            source, f"{odd!r} is a tensor neither of a LoRA in diffusers' or Kohya's form nor of {what}"
        )
    if odd := next((name for name in entries if _ENCODERS_DORA.match(name)), None):
        raise _refused(
            source, f"it is a DoRA of a text encoder ({odd}), whose magnitudes diffusers leaves out"
        )
    if any(re.match(r"(lora_te2_|text_encoder_2\.)", name) for name in entries):
        return "sdxl"
    for name, entry in entries.items():
        if re.search(r"attn2.*to_[kv].*(lora_A|down)", name) and len(entry.shape) == 2:
            return WIDTHS.get(entry.shape[1], "")
    return ""


def _base_of(source: Path, family: str) -> str:
    for card in BUILT_IN:
        if family and card.family == family:
            return card.name
    raise _refused(source, "its tensors do not tell for which model it was made: name that with --base")


async def save(
    store: Store, reference: str, out: Path, format: Literal["diffusers", "kohya"], report: Report
) -> Path:
    """Save a published model: a LoRA as a file, a full model as a new folder; returns where.

    Raises:
        Rejected: it is not published, cannot be written in this format, or `out` is there already.
        WrongContent: a file in the store is damaged.
    """
    card = await published.resolve(store, reference)
    if card.kind == "full" and format == "kohya":
        raise Rejected.of_field(
            "format", f"kohya is for LoRAs; {card.reference} is a full model: use diffusers"
        )
    if card.kind == "lora" and out.is_dir():
        out = out / f"{card.name}-{card.version}.safetensors"
    if out.exists():
        raise Rejected.of_field("out", f"{out} is there already; choose another place")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".dreamdrop-") as scratch:
        for file in card.weights:
            path = Path(scratch) / "model" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            key = version_prefix(card.name, card.version) + file.path

            def progress(done: int, path: str = file.path, size: int = file.size) -> None:
                report(path, done, size)

            if await store.fetch_file(key, path, progress=progress) != file.sha256:
                raise WrongContent(f"{key} is damaged; see `dreamdrop models verify {card.reference}`")
        if card.kind == "full":
            (Path(scratch) / "model").rename(out)
            return out
        weights = next(file.path for file in card.weights if file.path.endswith(".safetensors"))
        written = Path(scratch) / "out.safetensors"
        await asyncio.to_thread(convert, Path(scratch) / "model" / weights, written, format)
        shutil.move(written, out)
    return out


def _refused(source: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"{source}: {why}", field="source")
