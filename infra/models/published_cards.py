"""Published models as cards that a worker can plan with. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.models.cards import ModelCard
from infra.models.facts import BUILT_IN_FAMILIES, read_facts
from schemas import samplers
from schemas.defaults import CFG_SCALE, STEPS
from schemas.errors import Rejected

if TYPE_CHECKING:
    from schemas.models import PublishedCard


def card_of(published: PublishedCard) -> ModelCard:
    """The card of a published full model; its source is given when it is fetched."""
    try:
        scheduler = samplers.resolve(published.scheduler).name
    except Rejected:
        scheduler = "DPM++ 2M"  # works well with every Stable Diffusion
    return ModelCard(
        name=published.name,
        sources=(),
        native_width=published.native_width or 512,
        native_height=published.native_height or 512,
        scheduler=scheduler,
        flow=scheduler == samplers.FLOW[0],
        revision=str(published.version),
        licence=published.licence,
        steps=STEPS if published.steps is None else published.steps,
        cfg_scale=CFG_SCALE if published.cfg_scale is None else published.cfg_scale,
    )


def family_of(card: ModelCard) -> str:
    """The family of a model that this worker knows by itself; "" where that cannot be told before it is loaded."""
    if card.name in BUILT_IN_FAMILIES:
        return BUILT_IN_FAMILIES[card.name]
    for source in card.sources:
        if not source.startswith("hub:") and (family := read_facts(Path(source).expanduser()).family):
            return family
    return ""
