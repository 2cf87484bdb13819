"""Brings the published models and LoRAs of a plan onto this machine, while other requests are drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.lru import LruCache
from infra.models import published
from infra.stores.store import WrongContent
from schemas.errors import NotFound, Rejected
from schemas.models import version_prefix

if TYPE_CHECKING:
    from infra.models.cache import InUse, ModelCache
    from infra.models.cards import Cards
    from infra.stores.store import Store
    from schemas.models import PublishedCard
    from schemas.plan import Plan

log = logging.getLogger(__name__)

_REMEMBERED = 1000  # cards


@dataclass
class Fetched:
    """What a plan needs, on this machine until it is released."""

    native: tuple[int, int] | None = None  # width and height of its model, pixels
    folder: str = ""  # of its model; "" where that is one of the worker's own
    source: str = ""  # the model's prefix in the store
    licence: str = ""
    loras: dict[str, str] = field(default_factory=dict)  # name to file
    refiner: str = ""  # folder of the second model; "" where there is none, or it is one of the worker's own
    refiner_source: str = ""
    refiner_licence: str = ""
    used: list[InUse] = field(default_factory=list)

    def release(self) -> None:
        for use in self.used:
            use.release()


@dataclass
class ModelFetcher:
    """Fetches for one worker."""

    store: Store
    cache: ModelCache
    _cards: LruCache[str, PublishedCard] = field(default_factory=lambda: LruCache(_REMEMBERED))

    async def fetch(self, plan: Plan) -> Fetched:
        """Fetch what is missing of a plan's published models.

        Raises:
            Rejected: a version is gone, or a file of it is damaged.
            StoreUnavailable: the store does not answer.
            DiskTrouble: there is no room on this machine.
        """
        fetched = Fetched()
        try:
            if plan.model_version is not None:
                card = await self._card(plan.model, plan.model_version, "model")
                fetched.folder = str((await self._use(card, fetched, "model")).folder)
                fetched.source = version_prefix(card.name, card.version).rstrip("/")
                fetched.licence = card.licence
                if card.native_width and card.native_height:
                    fetched.native = (card.native_width, card.native_height)
            if plan.refiner is not None and plan.refiner.version is not None:
                card = await self._card(plan.refiner.model, plan.refiner.version, "refiner.model")
                fetched.refiner = str((await self._use(card, fetched, "refiner.model")).folder)
                fetched.refiner_source = version_prefix(card.name, card.version).rstrip("/")
                fetched.refiner_licence = card.licence
            for name, version in plan.lora_versions.items():
                card = await self._card(name, version, "loras")
                used = await self._use(card, fetched, "loras")
                wanted = plan.lora_hashes.get(name)
                path = next((f.path for f in card.weights if f.sha256 == wanted), None)
                if path is None:
                    text = f"{card.reference} does not hold the file that the request was planned with"
                    raise Rejected("model_unavailable", text, field="loras")
                fetched.loras[name] = str(used.folder / path)
        except BaseException:
            fetched.release()
            raise
        return fetched

    async def fetch_default(self, reference: str, cards: Cards) -> tuple[str, Fetched]:
        """Fetch what a worker loads at its start when its default model may be a published one.

        Returns:
            What the renderers call it, and its files, which stay on this machine until they are released. Of a LoRA it
            is the base: a model of the worker's own has no files here.

        Raises:
            Rejected: no such model is published, or it cannot be fetched; the message says what is known.
            StoreUnavailable: the store does not answer.
            DiskTrouble: there is no room on this machine.
        """
        try:
            card = await published.resolve(self.store, reference)
            if card.kind == "lora" and cards.firm(card.base) is not None:
                return card.base, Fetched()
            if card.kind == "lora":
                reference = card.base
                card = await published.resolve(self.store, reference)
        except Rejected:  # nothing is published under it
            return cards.get(reference, await published.names(self.store)).name, Fetched()
        fetched = Fetched()
        fetched.folder = str((await self._use(card, fetched, "model")).folder)
        return card.reference, fetched

    async def _card(self, name: str, version: int, where: str) -> PublishedCard:
        reference = f"{name}@{version}"
        card = self._cards.get(reference) or await published.read_card(self.store, name, version)
        if card is None:
            raise Rejected("model_unavailable", f"{reference} was removed from the store", field=where)
        self._cards[reference] = card
        return card

    async def _use(self, card: PublishedCard, fetched: Fetched, where: str) -> InUse:
        try:
            used = await self.cache.use(self.store, card)
        except NotFound as error:
            text = f"{card.reference} is not whole in the store: {error}"
            raise Rejected("model_unavailable", text, field=where) from error
        except WrongContent as error:
            raise Rejected("model_unavailable", str(error), field=where) from error
        fetched.used.append(used)
        return used
