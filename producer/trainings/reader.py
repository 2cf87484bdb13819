"""Reads what trainings a store has, for whoever looks often: results are written once, so each is read once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.claims.claim import Claim
from infra.claims.trainings import TrainingStore
from infra.lru import LruCache
from producer import overview, request_state
from producer.client import AsyncClient
from producer.liveness import Liveness
from producer.trainings.finding import trainings_of
from schemas.errors import NotFound, Rejected, TooLarge
from schemas.layout import claims_prefix
from schemas.result import Frozen, Result
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info
    from producer.overview import Overview
    from producer.request_state import State

LATEST = 50  # trainings that have ended, in an overview


@dataclass
class TrainingReader:
    """The trainings of a client's store. For one event loop."""

    requests: AsyncClient  # of the same store
    client: AsyncClient = field(init=False)
    view: TrainingStore = field(init=False)
    _liveness: Liveness = field(default_factory=Liveness)
    _results: LruCache[tuple[str, str], Result] = field(default_factory=lambda: LruCache(10 * LATEST))
    _manifests: LruCache[str, dict[str, Any]] = field(default_factory=lambda: LruCache(LATEST))

    def __post_init__(self) -> None:
        self.view = TrainingStore(self.requests.store)
        self.client = trainings_of(self.requests)

    async def overview(self, begin: str = "") -> Overview:
        """The trainings at a glance; see `producer.overview.overview`."""
        return await overview.overview(self.view, LATEST, self._result, begin=begin)

    async def trainers(self) -> list[dict[str, Any]]:
        """The heartbeats of the trainers that are alive."""
        return await overview.heartbeats(self.view, self._liveness.is_alive)

    async def _result(self, id: str, info: Info) -> Result | None:
        known = self._results.get((info.key, info.etag))
        if known is None:
            known = await request_state.read_result(self.view, id)
            if known is not None:  # without its request, which may be long
                known = known.model_copy(update={"request": Frozen(text="", cut=True)})
                self._results[info.key, info.etag] = known
        return known

    async def manifest(self, state: State) -> dict[str, Any]:
        """What a training asks for; {} where that cannot be read, or has pictures in it and is large."""
        if state.result is not None:
            return {} if state.result.request.cut else _document(state.result.request.body())
        known = self._manifests.get(state.id)
        if known is not None:
            return known
        claims = [info async for info in self.view.list(claims_prefix(state.id))]
        info = claims[-1] if claims else await request_state.find_request(self.view, state.id)
        if info is None or info.size >= overview.HEAVY:
            return {}
        with contextlib.suppress(NotFound, TooLarge, ValueError):
            body = (await self.view.get(info.key, max_bytes=overview.HEAVY)).body
            if not claims:
                return _document(body)  # people may still edit the file
            found = _document(Claim.model_validate_json(body).frozen.body())
            self._manifests[state.id] = found
            return found
        return {}


def _document(body: bytes) -> dict[str, Any]:
    try:
        return load_object(body)
    except Rejected:
        return {}
