"""The models that requests may name."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from producer.overview import addons_of
from producer.web.caller import Caller, FacadeOf
from producer.web.openapi import errors
from schemas.defaults import ModelDefaults, ModelState

router = APIRouter(tags=["Draw"])


class ListedModel(BaseModel):
    """A model that a request may name."""

    name: str
    workers: int = Field(description="Live workers that announce it.")
    here: int = Field(description="Of those, the ones that need not download it first.")
    versions: list[str] = Field(description="In the store.")
    state: ModelState | None = Field(
        description="How near it is to the worker that is nearest to it; null: nobody has it."
    )
    licence: str = Field(description='"" where it is not known.')
    memory: int | None = Field(description="Bytes of its weights at 16 bits each; null: not known.")
    defaults: ModelDefaults = Field(
        description="What fills the fields that a request leaves open; null where workers differ or do not say."
    )


class ModelList(BaseModel):
    """All of them, the nearest to a worker first."""

    models: list[ListedModel]
    controlnets: list[str] = Field(description="Names of the ControlNets that live workers know.")
    ip_adapters: list[str] = Field(description="Names of the IP-Adapters that live workers know.")


@router.get("/models", responses=errors(401, 503), summary="List models and their defaults")
async def models(facade: FacadeOf, caller: Caller) -> ModelList:
    beats = await facade.workers()
    return ModelList(
        controlnets=sorted(addons_of(beats, "controlnets")),
        ip_adapters=sorted(addons_of(beats, "ip_adapters")),
        models=[
            ListedModel(
                name=model.name,
                workers=model.workers,
                here=model.here,
                versions=list(model.versions),
                state=model.state,
                licence=model.licence,
                memory=model.memory,
                defaults=model.defaults,
            )
            for model in await facade.client.models()
        ],
    )
