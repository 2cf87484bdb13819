"""Finds what an id means: a request, else a training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infra.claims.trainings import MAX_BODY, TrainingStore
from infra.limits_env import limits_from
from producer.client import AsyncClient
from producer.errors import UnknownRequest
from schemas.layout import TRAININGS

if TYPE_CHECKING:
    from producer.request_state import State


@dataclass(frozen=True, slots=True)
class Found:
    """A request or a training."""

    client: AsyncClient  # of the requests, or of the trainings, of one store
    state: State
    is_training: bool
    also_training: bool = False  # a request has the id, and a training too

    async def again(self) -> State:
        """Its state now. Raises `UnknownRequest`."""
        look = self.client.status if self.is_training else self.client.find
        return await look(self.state.id)


def trainings_of(client: AsyncClient) -> AsyncClient:
    """A client of the trainings of a client's store. It needs no closing."""
    limits = replace(limits_from(), max_body_bytes=MAX_BODY)
    return AsyncClient(TrainingStore(client.store), limits=limits)


async def find(client: AsyncClient, name: str) -> Found:
    """What a name stands for: a request; a training where no request has it. `trainings/<id>` is a training.

    Raises:
        UnknownRequest: neither has it; with the nearest ids of requests, else of trainings.
    """
    trainings = trainings_of(client)
    try:
        state = await client.find(name)
    except UnknownRequest as no_request:
        try:
            return Found(trainings, await trainings.status(name.removeprefix(TRAININGS)), True)
        except UnknownRequest as no_training:
            raise (no_training if no_training.near and not no_request.near else no_request) from None
    return Found(client, state, False, await trainings.is_known(state.id))
