"""Finds the folder of the model that a training starts from: built in, given by the operator, or published."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.cache import ModelCache
from infra.models.cards import Cards, fetch_folder
from infra.models.published import resolve
from schemas.errors import Rejected
from schemas.models import split_reference

if TYPE_CHECKING:
    from infra.stores.store import Store


@dataclass(frozen=True, slots=True)
class FetchedBase:
    """A base model on this machine."""

    folder: Path
    name: str
    revision: str  # of a published model its number; it decides which weights these are
    licence: str = ""


@dataclass(frozen=True, slots=True)
class BaseModels:
    """The bases that trainings may name."""

    cards: Cards
    store: Store | None = None

    @classmethod
    def of(cls, models: Iterable[str]) -> BaseModels:
        """The built-in models, and the operator's own: `name=folder` or `name=hub:owner/name[@revision]`."""
        return cls(Cards.of(models))

    def on(self, store: Store) -> BaseModels:
        """The same, and what is published in a store."""
        return BaseModels(self.cards, store)

    async def fetch(self, reference: str, frozen: dict[str, Any] | None) -> FetchedBase:
        """Fetch a base, in the version that the training's first attempt has frozen.

        Raises:
            Rejected: `unknown_model`, or one that cannot be a base.
            Unavailable: it cannot be had at the moment.
        """
        name, _ = split_reference(reference)
        if name in self.cards.cards:
            card = self.cards.cards[name]
            folder = await asyncio.to_thread(fetch_folder, card)
            return FetchedBase(folder, name, card.revision, card.licence)
        assert self.store is not None, "bound by `on`"
        found = await resolve(self.store, f"{name}@{frozen['revision']}" if frozen else reference)
        if found.kind != "full":
            raise Rejected.of_field(
                "base", f"{reference!r} is a LoRA; start from its base, {found.base!r}, or from a full model"
            )
        folder = await ModelCache.of_environment().fetch(self.store, found)
        return FetchedBase(folder, name, str(found.version), found.licence)
