"""Published models as cards that a worker can plan with. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.models.cards import ModelCard
from schemas import samplers
from schemas.errors import Rejected

if TYPE_CHECKING:
    from schemas.models import PublishedCard

#: Works well with every Stable Diffusion.
_UNKNOWN = ModelCard("", (), native_width=512, native_height=512, scheduler="DPM++ 2M")


def card_of(published: PublishedCard, base: ModelCard | None = None) -> ModelCard:
    """The card of a published full model; its source is given when it is fetched.

    Args:
        base: the model that it was made from, if this worker knows it: for what its own card does not say.
    """
    like = base or _UNKNOWN
    try:
        scheduler = samplers.resolve(published.scheduler).name
    except Rejected:
        scheduler = like.scheduler
    return ModelCard(
        name=published.name,
        sources=(),
        native_width=published.native_width or like.native_width,
        native_height=published.native_height or like.native_height,
        scheduler=scheduler,
        flow=scheduler == samplers.FLOW[0],
        revision=str(published.version),
        licence=published.licence,
        family=published.family,
        steps=like.steps if published.steps is None else published.steps,
        cfg_scale=like.cfg_scale if published.cfg_scale is None else published.cfg_scale,
    )
