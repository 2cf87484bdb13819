"""Checks that somebody runs the trainings of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.claims.trainings import TrainingStore, in_store
from infra.queues.setup_check import Finding
from producer.overview import heartbeats
from producer.request_state import MOST, first
from schemas.layout import CLAIMS, REQUESTS, SINGLE, is_request, parse_claim, request_id, result_key

if TYPE_CHECKING:
    from infra.stores.store import Store

_NAMED = 5  # keys in a finding


async def trainers(store: Store, store_url: str) -> Finding | None:
    """Which trainers are alive, and whether trainings wait for one. None where nobody trains."""
    view = TrainingStore(store)
    states = sorted(str(beat.get("state", "alive")) for beat in await heartbeats(view))
    if states:
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return Finding("trainers", "pass", counts)
    count = len(await _open(view))
    if not count:
        return None
    why = f"{count:,} training{'s' * (count != 1)} wait{'s' * (count == 1)}, and no trainer is running"
    return Finding("trainers", "warn", why, f"start one: dreamdrop trainer --store {store_url}")


async def _open(view: TrainingStore) -> set[str]:
    """The ids of trainings that have not ended."""
    dropped = {
        request_id(info.key) async for info in first(view.list(REQUESTS), MOST) if _is_training(info.key)
    }
    claims = {claim[0] async for info in first(view.list(CLAIMS), MOST) if (claim := parse_claim(info.key))}
    # What was canceled keeps its claims until a trainer removes them.
    return dropped | {id for id in claims if await view.head(result_key(id)) is None}


async def training_inbox(store: Store) -> Finding | None:
    """Name the files under `trainings/` that no trainer takes; None when there are none."""
    listed = first(TrainingStore(store).list(REQUESTS), MOST)
    left = [in_store(info.key) async for info in listed if not _is_training(info.key)]
    if not left:
        return None
    names = ", ".join(map(repr, left[:_NAMED])) + (", ..." if len(left) > _NAMED else "")
    why = f"{len(left):,} file{'s' * (len(left) != 1)} that no trainer takes: {names}"
    return Finding("trainings", "warn", why, "name trainings .json, without a dot in front, one a file")


def _is_training(key: str) -> bool:
    return is_request(key) and key.lower().endswith(SINGLE)
