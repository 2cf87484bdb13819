"""What there is to choose from, in A1111's words; and the one choice that is remembered, the model.

Lists of what this server has none of are empty: programs ask for them when they start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from producer.web.a1111.fields import checkpoint
from producer.web.api_keys import Key
from producer.web.caller import Caller, FacadeOf, document
from producer.web.facade import Facade
from producer.web.openapi import ERRORS
from schemas import samplers
from schemas.errors import Rejected

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
LOOKING: dict[int | str, dict[str, Any]] = {401: ERRORS[401], 503: ERRORS[503]}
CHANGING: dict[int | str, dict[str, Any]] = {**LOOKING, 413: ERRORS[413], 422: ERRORS[422]}
NONE_OF = (
    "upscalers",
    "latent-upscale-modes",
    "sd-vae",
    "sd-modules",
    "loras",
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "artist-categories",
    "artists",
    "script-info",
    "extensions",
)
EMPTY: dict[str, dict[str, Any]] = {
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},  # of the workers, which are other machines
}


def chosen_model(request: Request, caller: Key) -> str | None:
    """The model that a caller set in `/options`, until this server ends."""
    chosen: dict[str, str] = request.app.state.checkpoints
    return chosen.get(caller.name)


@router.get("/samplers", responses=LOOKING, summary="Samplers")
async def all_samplers(caller: Caller) -> list[dict[str, Any]]:
    """Those of the name Karras are also there as `scheduler: karras`."""
    return [{"name": name, "aliases": samplers.aliases(name), "options": {}} for name in samplers.names()]


@router.get("/schedulers", responses=LOOKING, summary="Noise schedules")
async def schedulers(caller: Caller) -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name, label in (("automatic", "Automatic"), ("karras", "Karras"))
    ]


@router.get("/sd-models", responses=LOOKING, summary="Models")
async def sd_models(facade: FacadeOf, caller: Caller) -> list[dict[str, Any]]:
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in await _names(facade)
    ]


@router.get("/options", responses=LOOKING, summary="Settings")
async def options(request: Request, facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """The model that is drawn with where a request names none, and what else is fixed."""
    default = next((str(w["default_model"]) for w in await facade.workers() if w.get("default_model")), "")
    return {
        "sd_model_checkpoint": chosen_model(request, caller) or default,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


@router.post(
    "/options",
    responses=CHANGING,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"sd_model_checkpoint": "doodle"},
                }
            },
        }
    },
    summary="Choose the model of later requests",
)
async def set_options(request: Request, facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """`sd_model_checkpoint` is remembered for this caller's key until the server ends; "" forgets it.

    Everything else is accepted without effect: `GET /sdapi/v1/options` goes on to say what is in force.
    """
    body = await document(request)
    chosen: dict[str, str] = request.app.state.checkpoints
    if body.get("sd_model_checkpoint") == "":
        chosen.pop(caller.name, None)
    elif body.get("sd_model_checkpoint") is not None:
        name, known = checkpoint(body["sd_model_checkpoint"]), await _names(facade)
        if name.partition("@")[0] not in known:
            raise Rejected(
                "unknown_model",
                f"no model is named {name[:100]!r}; there are {', '.join(known) or 'none yet'}",
                field="sd_model_checkpoint",
            )
        chosen[caller.name] = name
    return {}


@router.post("/refresh-checkpoints", responses=LOOKING, summary="Nothing: models are looked for each time")
async def refresh_checkpoints(caller: Caller) -> dict[str, Any]:
    return {}


async def _names(facade: Facade) -> list[str]:
    return [model.name for model in await facade.client.models()]


def _mount(name: str, answer: Callable[[], Any]) -> None:
    async def empty(caller: Caller) -> Any:
        return answer()

    router.add_api_route(
        f"/{name}", empty, methods=["GET"], responses=LOOKING, summary="Empty", name=f"a1111 {name}"
    )


for _name in NONE_OF:
    _mount(_name, list)
for _name, _answer in EMPTY.items():
    _mount(_name, _answer.copy)
