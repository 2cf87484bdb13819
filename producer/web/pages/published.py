"""What the pages show of published models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from infra.models import published
from schemas.models import PublishedCard

if TYPE_CHECKING:
    from infra.stores.store import Store

#: The pictures that a card may name, by their ending.
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class ModelItem:
    """A published name: what it means now, and its other versions."""

    card: PublishedCard  # of the current version; else of the newest one
    versions: Sequence[int]  # all, the newest first
    current: int | None
    picture: str  # its address; "" where there is none


def items_of(cards: Sequence[PublishedCard], current: Mapping[str, int | None]) -> list[ModelItem]:
    """The cards of all versions, by name.

    Args:
        current: what each name means.
    """
    by_name: dict[str, dict[int, PublishedCard]] = {}
    for card in cards:
        by_name.setdefault(card.name, {})[card.version] = card
    items = []
    for name, versions in sorted(by_name.items()):
        now = current.get(name)
        card = versions.get(now or 0) or versions[max(versions)]
        items.append(ModelItem(card, sorted(versions, reverse=True), now, picture_of(card)))
    return items


def picture_of(card: PublishedCard) -> str:
    """The address of a card's last validation picture; "" where it has none."""
    shown = [path for path in card.validation if path.endswith(tuple(PICTURES))]
    return f"/m/{quote(card.name)}/{card.version}/{quote(shown[-1])}" if shown else ""


async def read_models(store: Store) -> list[ModelItem]:
    """What is published in a store."""
    cards = await published.list_models(store)
    names = {card.name for card in cards}
    return items_of(cards, {name: await published.current_version(store, name) for name in names})
