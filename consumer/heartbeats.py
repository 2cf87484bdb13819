"""The worker's heartbeats: what they say, and when none is written."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer import metrics
from infra.models.cards import state_of
from infra.models.hub_caches import HUB
from schemas.defaults import ModelState
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from consumer.intake.fleet import Capabilities
    from consumer.renderer.process import Renderer
    from consumer.speeds import Speeds
    from infra.claims.claims import Claims
    from infra.models.cards import Cards

log = logging.getLogger(__name__)

_WHY = 200  # characters of a reason that a heartbeat repeats
_TIMEOUT = 5.0  # seconds at least until an unanswered heartbeat is given up; then a new one is tried


@dataclass
class Heartbeats:
    """Writes them for one worker, while at least one of its renderers is idle or makes progress."""

    claims: Claims
    own: Capabilities
    cards: Cards
    default_model: str
    renderers: Sequence[Renderer]
    speeds: Speeds
    state: Callable[[], str]  # idle, working or draining
    clock: Callable[[], float]

    async def run(self) -> None:
        every = self.claims.timing.beat
        due = self.clock()
        while True:
            due = max(due + every, self.clock())  # a slow heartbeat does not delay the next
            await asyncio.sleep(due - self.clock())
            if any(renderer.healthy for renderer in self.renderers):
                await self.beat()
            else:
                metrics.heartbeat_withheld()
                log.warning("no renderer makes progress: no heartbeat is written")

    async def beat(self) -> None:
        """Write one."""
        try:
            async with asyncio.timeout(max(_TIMEOUT, self.claims.timing.beat)):
                await self.claims.beat(self._facts())
        except (StoreUnavailable, TimeoutError) as error:  # one lost answer must not cost the lease
            metrics.heartbeat_failed()
            why = str(error) or "the store does not answer"
            log.warning("the heartbeat was not written", extra={"why": why})

    def _facts(self) -> dict[str, Any]:
        return {
            "state": self.state(),
            **self.own.facts(),
            "available": self.available(),
            "states": self.states(),
            "defaults": self.cards.defaults(),
            "default_model": self.default_model,
            "speeds": self.speeds.facts(),
            "devices": [renderer.ready.device for renderer in self.renderers if renderer.ready],
        }

    def available(self) -> list[str]:
        """The models that can be drawn without a download."""
        null = all(renderer.settings.kind == "null" for renderer in self.renderers)
        return self.cards.known() if null else self.cards.here()

    def states(self) -> dict[str, Any]:
        """How near each model is to this worker, as `ModelState` reads it."""
        loads = [renderer.loads for renderer in self.renderers]
        loaded = {name: size for one in loads for name, size in one.loaded.items()}
        missing = {name: why for one in loads for name, why in one.missing.items()}
        if all(renderer.settings.kind == "null" for renderer in self.renderers):
            loaded = dict.fromkeys(self.cards.known(), 0)
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        found = {}
        for name, card in sorted(self.cards.cards.items()):
            state = state_of(card, offline=offline)
            if name in loaded:
                state = ModelState(state="loaded", bytes=loaded[name] or None)
            elif name in missing and state.state == "download":
                state = ModelState(state="unreachable", why=missing[name][:_WHY])
            elif HUB.why and state.state == "download":
                state = ModelState(state="unreachable", why=f"the hub cannot be reached ({HUB.why})"[:_WHY])
            found[name] = state.model_dump(exclude_defaults=True)
        return found
