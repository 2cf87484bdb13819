"""Drops a training into a store, checked and under an id that is free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from producer import sending
from producer.requests import Parcel, Ticket, fresh_id
from schemas.layout import fingerprint, request_key
from schemas.training import validate_training

if TYPE_CHECKING:
    from infra.claims.trainings import TrainingStore


async def drop(store: TrainingStore, document: Mapping[str, Any], id: str = "") -> Ticket:
    """Check a training and create its file. The same training under the same id is the same training.

    Args:
        id: by default the model's name with a new ending.

    Raises:
        Rejected: it can never succeed; nothing was created.
        Conflict: the id stands for another training.
    """
    training = validate_training(document)
    body = json.dumps(document, ensure_ascii=False, sort_keys=True).encode()
    name = id or f"{training.name[:80]}-{fresh_id()}"
    ticket = Ticket(name, request_key(name), fingerprint(body))
    return await sending.drop(store, Parcel(ticket, body, chosen=bool(id)))
