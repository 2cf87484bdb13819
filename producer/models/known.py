"""The models that a request may name: those of live workers, and those in the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.gather import gather_bounded
from infra.lru import LruCache
from infra.models.cards import BUILT_IN, POPULAR
from producer.overview import defaults_of, heartbeats, models_here, models_of
from schemas.defaults import ModelDefaults, ModelState, sized
from schemas.errors import NotFound
from schemas.layout import MODELS
from schemas.models import PublishedCard, card_key, current_prefix, parse_card

if TYPE_CHECKING:
    from infra.stores.store import Store

_READS = 8  # objects read at a time
_KEPT = 2000  # objects under models/, none of which ever changes
_UNKNOWN = ModelDefaults()
_CARDS = {card.name: card for card in (*BUILT_IN, *POPULAR)}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model that a request may name, and where it was found."""

    name: str
    workers: int  # live ones that announce it
    versions: tuple[str, ...]  # in the store
    here: int = 0  # live workers that need not download it first
    defaults: ModelDefaults = _UNKNOWN  # what fills the fields that a request leaves open
    state: ModelState | None = (
        None  # of the worker that is nearest to it; None: no worker and no store has it
    )
    licence: str = ""  # "" where it is not known
    memory: int | None = None  # bytes of its weights at 16 bits each

    def document(self) -> dict[str, Any]:
        """As JSON."""
        models = {
            "defaults": self.defaults.model_dump(),
            "state": self.state.model_dump() if self.state else None,
        }
        plain = ("name", "workers", "versions", "here", "licence", "memory")
        return {name: getattr(self, name) for name in plain} | models

    def columns(self) -> list[str]:
        """For people: its name, its state, and what else is known."""
        facts = [f"{self.here} worker{'s' * (self.here != 1)}"] if self.here else []
        if self.versions:
            facts.append(f"published: {', '.join(f'version {version}' for version in self.versions)}")
        facts += [f"by default {text}"] if (text := self.defaults.text()) else []
        facts += [f"{sized(self.memory)} of weights at 16 bits"] if self.memory else []
        facts += [self.licence] if self.licence else []
        return [
            self.name,
            self.state.text() if self.state else "not here: no worker has it",
            "; ".join(facts),
        ]


class Published:
    """What is published in a store, read once: its objects never change."""

    def __init__(self) -> None:
        self._bodies: LruCache[str, bytes | None] = LruCache(_KEPT)

    async def read(self, store: Store) -> tuple[dict[str, list[int]], dict[str, PublishedCard]]:
        """The versions by name, and the cards of those that the names mean now."""
        keys = [info.key async for info in store.list(MODELS)]
        versions: dict[str, list[int]] = {}
        for key in keys:
            if (found := parse_card(key)) is not None:
                versions.setdefault(found[0], []).append(found[1])
        moves = {key[: key.rindex("/") + 1]: key for key in keys if "/current/" in key}  # the last one counts

        async def card_of(name: str) -> tuple[str, PublishedCard | None]:
            move = moves.get(current_prefix(name))
            version = _version(await self._body(store, move)) if move else None
            body = await self._body(store, card_key(name, version)) if version in versions[name] else None
            return name, _card(body)

        cards = dict(await gather_bounded(sorted(versions), _READS, card_of))
        return versions, {name: card for name, card in cards.items() if card is not None}

    async def _body(self, store: Store, key: str) -> bytes | None:
        if key not in self._bodies:
            try:
                self._bodies[key] = (await store.get(key, max_bytes=1 << 20)).body
            except NotFound:
                return None
        return self._bodies[key]


async def models(store: Store, published: Published) -> list[ModelName]:
    """The models that live workers announce, and those in the store; the nearest to a worker first."""
    beats = await heartbeats(store)
    announced = Counter(name for beat in beats for name in models_of(beat))
    here = Counter(name for beat in beats for name in models_here(beat))
    versions, cards = await published.read(store)
    names = []
    for name in sorted(announced.keys() | versions.keys()):
        own, stored = _CARDS.get(name), cards.get(name)
        if stored is not None and announced[name] and not (own and own.yields):
            stored = None  # a worker's own names go first
        defaults = defaults_of(beats, name) if stored is None else defaults_of_card(stored, beats)
        names.append(
            ModelName(
                name,
                announced[name],
                tuple(map(str, sorted(versions.get(name, ())))),
                here[name] if stored is None else 0,
                defaults,
                state_of(beats, name) if stored is None else _in_store(stored),
                stored.licence if stored else own.licence if own else "",
                (own.memory_bytes or None) if own and not stored else None,
            )
        )
    return sorted(names, key=lambda model: model.state.distance if model.state else 9)


def defaults_of_card(card: PublishedCard, beats: Iterable[Mapping[str, Any]]) -> ModelDefaults:
    """What a published model draws with where a request leaves it open; what its card leaves open is its base's."""
    base = defaults_of(list(beats), card.base.partition("@")[0])
    told = {
        "steps": card.steps,
        "cfg_scale": card.cfg_scale,
        "scheduler": card.scheduler or None,
        "width": card.native_width or None,
        "height": card.native_height or None,
    }
    return base.model_copy(update={name: value for name, value in told.items() if value is not None})


def state_of(beats: Iterable[Mapping[str, Any]], model: str) -> ModelState | None:
    """How near a model is to the live worker that is nearest to it."""
    found = [_state(beat, model) for beat in beats if model in models_of(beat)]
    return min(found, key=lambda state: state.distance, default=None)


def _state(beat: Mapping[str, Any], model: str) -> ModelState:
    states = beat.get("states")
    told = ModelState.read(states.get(model)) if isinstance(states, dict) else None
    # An older worker says only whether it has the weights.
    return told or ModelState(state="disk" if model in models_here(beat) else "download")


def _in_store(card: PublishedCard) -> ModelState:
    return ModelState(state="store", bytes=sum(file.size for file in card.weights))


def _version(body: bytes | None) -> int | None:
    try:
        found = json.loads(body or b"null")
    except ValueError:
        return None
    version = found.get("version") if isinstance(found, dict) else None
    return version if type(version) is int else None


def _card(body: bytes | None) -> PublishedCard | None:
    try:
        return PublishedCard.model_validate_json(body) if body else None
    except ValueError:
        return None
