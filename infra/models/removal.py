"""Removes published versions, and verifies their files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.gather import gather_bounded
from infra.models.published import current_version, list_models, read_card, resolve, withdraw
from schemas.errors import NotFound, Rejected
from schemas.layout import CHOSEN_ID, CLAIMS, FROZEN, TRAINING_CLAIMS, TRAINING_RESULTS, parse_claim
from schemas.models import card_key, split_reference, version_prefix

if TYPE_CHECKING:
    from infra.stores.store import Store
    from schemas.models import PublishedCard

_READS = 8  # claims read at a time


async def remove(store: Store, reference: str) -> list[PublishedCard]:
    """Remove a version (`name@version`), or a name with all of its versions (`name`); returns what was removed.

    Raises:
        Rejected: it is not there; the name means this version; or a request or training that is under way uses it.
    """
    name, version = split_reference(reference)
    if version is None:
        cards = await list_models(store, name)
        if not cards:
            raise Rejected("unknown_model", f"no model is published as {reference[:200]!r}", field="model")
    else:
        cards = [await resolve(store, reference)]
        if await current_version(store, name) == version:
            raise Rejected.of_field(
                "model",
                f"{reference} is what {name} means now; move the name first "
                f"(dreamdrop models use {name}@...), or remove {name} with all of its versions",
            )
    used = await _used(store, name)
    for card in cards:
        if card.version in used:
            raise Rejected.of_field(
                "model",
                f"{card.reference} is needed by {used[card.version]}, which is not over; try later",
            )
    if version is None:
        await withdraw(store, name)
    for card in cards:
        await store.delete(card_key(card.name, card.version))  # first: without a card there is no version
        async for info in store.list(version_prefix(card.name, card.version)):
            await store.delete(info.key)
    return cards


async def _used(store: Store, name: str) -> dict[int, str]:
    """The versions of a name that plans of claims and trainings under way need, each with who needs it."""
    keys = [info.key async for info in store.list(CLAIMS)]
    claims = [(parsed[0], key) for key in keys if (parsed := parse_claim(key)) and not parsed[2]]
    used: dict[int, str] = {}

    async def look(claim: tuple[str, str]) -> None:
        try:
            document = json.loads((await store.get(claim[1])).body)
        except (NotFound, ValueError):
            return
        plan: Any = document.get("plan") if isinstance(document, dict) else None
        if not isinstance(plan, dict):
            return
        versions = plan.get("lora_versions")
        found = [versions.get(name)] if isinstance(versions, dict) else []
        found += [plan.get("model_version")] if plan.get("model") == name else []
        refiner = plan.get("refiner")
        found += (
            [refiner.get("version")] if isinstance(refiner, dict) and refiner.get("model") == name else []
        )
        used.update({version: claim[0] for version in found if isinstance(version, int)})

    async def look_at_training(id: str) -> None:
        try:
            document = json.loads((await store.get(f"{TRAINING_RESULTS}{id}/{FROZEN}")).body)
            base, revision = document["base"]["name"], int(document["base"]["revision"])
        except (NotFound, ValueError, KeyError, TypeError):
            return  # not begun, or from a model that is not a published one
        if base == name:
            used[revision] = f"the training {id}"

    await gather_bounded(claims, _READS, look)
    under_way = [
        CLAIMS + info.key.removeprefix(TRAINING_CLAIMS) async for info in store.list(TRAINING_CLAIMS)
    ]
    ids = sorted({claim[0] for key in under_way if (claim := parse_claim(key))})
    await gather_bounded(ids, _READS, look_at_training)
    return used


async def verify(store: Store, reference: str, progress: Callable[[str], None] | None = None) -> list[str]:
    """Read every file of a version, and compare its hash; returns what is wrong, in words.

    Args:
        progress: called with the path of each file before it is read.
    """
    name, version = split_reference(reference)
    if version is None and CHOSEN_ID.fullmatch(name):
        version = await current_version(store, name)
    if version is not None and CHOSEN_ID.fullmatch(name):
        key = card_key(name, version)
        if await read_card(store, name, version) is None and await store.head(key) is not None:
            return [f"{key} cannot be read: it is not the card of a model"]
    card = await resolve(store, reference)
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for file in card.files:
            if progress is not None:
                progress(file.path)
            key = version_prefix(card.name, card.version) + file.path
            try:
                found = await store.fetch_file(key, Path(folder) / "file")
            except NotFound:
                faults.append(f"{key} is missing")
                continue
            if found != file.sha256:
                faults.append(f"{key} is damaged: its sha256 is {found}, and the card says {file.sha256}")
    return faults
