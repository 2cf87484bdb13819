"""Finds the folder of the model that a training starts from: built in, given by the operator, or published."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.models.cache import DEFAULT_BYTES, ModelCache, default_folder
from infra.models.cards import Cards
from infra.models.model_files import find
from infra.models.published import current_version, read_card, resolve
from schemas.errors import Rejected
from schemas.models import split_reference
from training.lease.pulse import Pulse

if TYPE_CHECKING:
    from infra.models.cache import InUse
    from infra.stores.store import Store
    from training.bases import Base


@dataclass(frozen=True, slots=True)
class FetchedBase:
    """A base model on this machine, until it is released."""

    folder: Path
    name: str
    revision: str  # of a published model its number; it decides which weights these are
    licence: str = ""
    used: InUse | None = None

    def release(self) -> None:
        if self.used is not None:
            self.used.release()


@dataclass(frozen=True, slots=True)
class BaseModels:
    """The bases that trainings may name."""

    cards: Cards
    cache_bytes: int = DEFAULT_BYTES  # of published models that stay on this machine
    store: Store | None = None
    pulse: Pulse = field(default_factory=Pulse)

    @classmethod
    def of(cls, models: Iterable[str], cache_bytes: int = DEFAULT_BYTES) -> BaseModels:
        """The built-in models, and the operator's own: `name=folder` or `name=hub:owner/name[@revision]`."""
        return cls(Cards.of(models, popular=False), cache_bytes)  # none of those can be trained

    def on(self, store: Store) -> BaseModels:
        """The same, and what is published in a store."""
        return replace(self, store=store)

    def knows(self, reference: str) -> bool:
        """Whether a base is built in, or the operator's own; others are looked for in the store."""
        return split_reference(reference)[0] in self.cards.cards

    async def fetch(self, reference: str, frozen: dict[str, Any] | None = None) -> FetchedBase:
        """Fetch a base.

        Args:
            frozen: its name and revision, as the training's first attempt found them.

        Raises:
            Rejected: `unknown_model`, or one that cannot be a base.
            Unavailable: it cannot be had at the moment.
        """
        name, _ = split_reference(reference)
        if self.knows(reference):
            card = self.cards.cards[name]
            # The hub's library gives up by itself when nothing comes.
            found = await self.pulse.during(asyncio.to_thread(find, card, offline=False, cache=None))
            if found.configs is not None:
                raise Rejected.of_field(
                    "base",
                    f"{name!r} is a model in one file; publish it (`dreamdrop models import {found.path} --name ...`), "
                    "and train from what is published",
                )
            return FetchedBase(found.path, name, card.revision, card.licence)
        if self.store is None:
            known = ", ".join(self.cards.known())
            text = f"{reference!r} is not built in, and the store has no models; built in are {known}"
            raise Rejected("unknown_model", text, field="base")
        try:
            published = await resolve(self.store, f"{name}@{frozen['revision']}" if frozen else reference)
        except Rejected as error:
            names = self.cards.known()
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            text = f"base: {error.message}; built in are {', '.join(names)}{hint}"
            raise Rejected("unknown_model", text, field="base") from None
        if published.kind != "full":
            raise Rejected.of_field(
                "base",
                f"{reference!r} is a LoRA; start from its base, {published.base!r}, or from a full model",
            )
        used = await ModelCache(default_folder(), self.cache_bytes).use(self.store, published)
        return FetchedBase(used.folder, name, str(published.version), published.licence, used)


async def check_family(store: Store, name: str, base: Base) -> None:
    """Raises `Rejected` where a model of another family has the name: whoever draws with it would be surprised."""
    if (version := await current_version(store, name)) is None:
        return
    card = await read_card(store, name, version)
    if card is not None and card.family not in ("", base.family):
        raise Rejected.of_field(
            "name",
            f"is {name!r}, and {card.reference} is of family {card.family}; {base.name} is of family {base.family}: "
            "choose another name",
        )
