"""What the names in a manifest mean: models and LoRAs of this worker, and those that are published in its store.

A worker's own names come first. Every other one is looked up in the store, so that what was published a moment ago
can be named; that a name means nothing is never remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from infra.lru import LruCache
from infra.models import published
from infra.models.published_cards import card_of
from schemas.errors import Rejected
from schemas.layout import CHOSEN_ID
from schemas.manifest_parts import LoraChoice
from schemas.models import split_reference
from schemas.plan import Refines
from schemas.result import Note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.models.cards import Cards, ModelCard
    from infra.stores.store import Store
    from schemas.manifest import Manifest
    from schemas.manifest_parts import Refiner
    from schemas.models import PublishedCard

_REMEMBERED = 1000  # names, and cards
_REFINES = "sdxl"  # the family whose pipelines can stop early; its refiners have a UNet of their own kind


@dataclass(frozen=True, slots=True)
class Meaning:
    """A manifest's names, resolved."""

    card: ModelCard
    loras: tuple[LoraChoice, ...] = ()  # by their names without versions
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    model_version: int | None = None  # where the model is a published one
    lora_versions: Mapping[str, int] = field(default_factory=dict)
    ip_adapter: str | None = None  # its name, where the manifest asks for one
    notes: tuple[Note, ...] = ()
    refiner: Refines | None = None


@dataclass
class Names:
    """Resolves names for one worker."""

    cards: Cards
    default_model: str
    store: Store | None  # None: only the worker's own names
    clock: Callable[[], float]
    _current: LruCache[str, tuple[float, PublishedCard]] = field(
        default_factory=lambda: LruCache(_REMEMBERED)
    )
    _cards: LruCache[str, PublishedCard] = field(default_factory=lambda: LruCache(_REMEMBERED))

    async def read(self, manifest: Manifest, seen: float) -> Meaning:
        """Resolve the models, the LoRAs, the ControlNets and the IP-Adapter.

        Args:
            seen: when the manifest was here, by our clock. What was published before that is found.

        Raises:
            Rejected: one is unknown, or of another family than the model.
            StoreUnavailable: try again.
        """
        meaning = await self._model(manifest, seen)
        if manifest.task == "inpainting" or manifest.refiner is None:
            return meaning
        return replace(meaning, refiner=await self._refiner(manifest.refiner, meaning.card, seen))

    async def _refiner(self, asked: Refiner, base: ModelCard, seen: float) -> Refines:
        card, version = self.cards.firm(asked.model), None
        if card is None:
            model = await self._published(asked.model, seen)
            if model is None:
                card = self.cards.get(asked.model, await self._published_names(), "refiner.model")  # raises
            elif model.kind != "full":
                raise _refused(f"is {model.reference}, a LoRA; name a whole model", "refiner.model")
            else:
                card, version = self._card_of(model), model.version
        for one, what in ((card, "a refiner must be"), (base, "a refiner goes on from")):
            if one.family and not (one.family == _REFINES or one.family.startswith("unet-")):
                text = (
                    f"is {card.name!r}; {what} an SDXL model, and {one.name!r} is of the family {one.family}"
                )
                raise _refused(text, "refiner.model")
        return Refines(model=card.name, at=asked.at, revision=card.revision, version=version)

    async def _model(self, manifest: Manifest, seen: float) -> Meaning:
        name = manifest.model or self.default_model
        if (own := self.cards.firm(name)) is not None:
            return await self._with_loras(manifest, own, None, seen)
        model = await self._published(name, seen)
        if model is None:
            others = [] if name in self.cards.cards else await self._published_names()
            return await self._with_loras(manifest, self.cards.get(name, others), None, seen)
        if model.kind == "full":
            return await self._with_loras(manifest, self._card_of(model), model.version, seen)
        return await self._lora_as_model(manifest, model, seen)

    def _card_of(self, model: PublishedCard) -> ModelCard:
        return card_of(model, self.cards.cards.get(split_reference(model.base)[0]))

    async def _lora_as_model(self, manifest: Manifest, lora: PublishedCard, seen: float) -> Meaning:
        """A LoRA that is named as the model: its base, with the LoRA at its default weight."""
        base = await self._published(lora.base, seen) if self.cards.firm(lora.base) is None else None
        if base is not None and base.kind != "full":
            raise _refused(f"is {lora.reference}, a LoRA whose base {lora.base!r} is a LoRA itself", "model")
        if base is None and lora.base not in self.cards.cards:
            raise Rejected(
                "unknown_model",
                f"model is {lora.reference}, a LoRA for {lora.base!r}, which this worker does not know; register it "
                f"with --models {lora.base or 'name'}=..., or publish it",
                field="model",
            )
        card = self.cards.get(lora.base) if base is None else self._card_of(base)
        notes: tuple[Note, ...] = ()
        if lora.base_revision and card.revision and lora.base_revision != card.revision:
            text = f"{lora.reference} was made from revision {lora.base_revision} of {card.name}; here it is "
            notes = (Note(code="base_changed", message=text + card.revision, field="model"),)
        version = base.version if base is not None else None
        return await self._with_loras(manifest, card, version, seen, first=lora, notes=notes)

    async def _with_loras(
        self,
        manifest: Manifest,
        card: ModelCard,
        version: int | None,
        seen: float,
        *,
        first: PublishedCard | None = None,
        notes: tuple[Note, ...] = (),
    ) -> Meaning:
        choices: list[LoraChoice] = []
        hashes: dict[str, str] = {}
        versions: dict[str, int] = {}

        def add(found: PublishedCard, weight: float) -> None:
            if card.family and found.family and found.family != card.family:
                raise _refused(
                    f"has {found.reference}, which is made for models of the family {found.family}; "
                    f"{card.name} is of {card.family}"
                )
            choices.append(LoraChoice(name=found.name, weight=weight))
            hashes[found.name], versions[found.name] = _lora_hash(found), found.version

        if first is not None:
            add(first, first.weight)
        for lora in manifest.loras:
            if lora.name in self.cards.loras:
                choices.append(lora)
                hashes[lora.name] = self.cards.lora(lora.name).sha256
                continue
            found = await self._published(lora.name, seen)
            if found is None:
                self.cards.lora(lora.name, await self._published_names())  # raises
            elif found.kind != "lora":
                raise _refused(f"has {found.reference}, which is a whole model; name it as the model")
            else:
                add(found, lora.weight if "weight" in lora.model_fields_set else found.weight)
        names = [choice.name for choice in choices]
        if twice := [name for name in names if names.count(name) > 1]:
            raise _refused(f"names {twice[0]!r} twice; give each LoRA once, with one weight")
        adapter = self._addons(manifest, card)
        return Meaning(card, tuple(choices), hashes, version, versions, adapter, notes)

    def _addons(self, manifest: Manifest, card: ModelCard) -> str | None:
        """The name of the IP-Adapter that a manifest asks for; its ControlNets have names. Raises `Rejected`."""
        known = self.cards.addons
        for place, one in enumerate(manifest.controlnet):
            known.controlnet(one.name, f"controlnet.{place}.name", card.name, card.family)
        if manifest.ip_adapter is None:
            return None
        return known.ip_adapter(manifest.ip_adapter.name, card.name, card.family).name

    async def _published(self, reference: str, seen: float) -> PublishedCard | None:
        """What is published under `name` or `name@version`; None when nothing is.

        Manifests that were here before a look began share its answer.
        """
        name, version = split_reference(reference)
        if self.store is None or not CHOSEN_ID.fullmatch(name):
            return None
        if version is not None and (card := self._cards.get(reference)) is not None:
            return card
        began = self.clock()
        entry = self._current.get(name) if version is None else None
        if entry is not None and entry[0] > seen:
            return entry[1]
        try:
            card = await published.resolve(self.store, reference)
        except Rejected:
            return None
        self._cards[card.reference] = card
        if version is None:
            self._current[name] = (began, card)
        return card

    async def _published_names(self) -> list[str]:
        return await published.names(self.store) if self.store is not None else []


def _lora_hash(card: PublishedCard) -> str:
    return next(file.sha256 for file in card.weights if file.path.endswith(".safetensors"))


def _refused(text: str, field: str = "loras") -> Rejected:
    return Rejected("unsupported", f"{field} {text}", field=field)
