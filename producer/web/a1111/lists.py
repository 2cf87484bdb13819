"""A1111's lists of samplers, schedulers and models, and its options, of which only the model is stored.

Lists of things that this server does not have are empty; programs read them when they start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from producer.web.a1111.fields import checkpoint
from producer.web.a1111.second_pass import UPSCALER
from producer.web.api_keys import Key
from producer.web.caller import Caller, FacadeOf, document
from producer.web.facade import Facade
from producer.web.openapi import errors, request_body
from schemas import samplers
from schemas.defaults import ModelDefaults
from schemas.errors import Rejected

router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
READ_ERRORS = errors(401, 503)
EMPTY_LISTS = (
    "latent-upscale-modes", "sd-vae", "sd-modules", "loras", "hypernetworks", "face-restorers",
    "realesrgan-models", "prompt-styles", "artist-categories", "artists", "script-info", "extensions",
)  # fmt: skip
EMPTY_OBJECTS: dict[str, dict[str, Any]] = {
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},  # workers are other machines
}


def chosen_model(request: Request, caller: Key) -> str | None:
    """The model that a caller set in `/options`; lost when this server stops."""
    chosen: dict[str, str] = request.app.state.checkpoints
    return chosen.get(caller.name)


@router.get("/samplers", responses=READ_ERRORS, summary="List samplers")
async def list_samplers(caller: Caller) -> list[dict[str, Any]]:
    """A sampler with Karras in its name can also be chosen by `scheduler: karras`."""
    return [{"name": name, "aliases": samplers.aliases(name), "options": {}} for name in samplers.names()]


@router.get("/schedulers", responses=READ_ERRORS, summary="List noise schedules")
async def schedulers(caller: Caller) -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name, label in (("automatic", "Automatic"), ("karras", "Karras"))
    ]


@router.get("/upscalers", responses=READ_ERRORS, summary="List upscalers")
async def upscalers(caller: Caller) -> list[dict[str, Any]]:
    """What enlarges the picture between the passes of `enable_hr`: a filter, no model."""
    nothing = dict.fromkeys(("model_name", "model_path", "model_url"))
    return [{"name": UPSCALER, **nothing, "scale": 4}]


@router.get("/sd-models", responses=READ_ERRORS, summary="List models")
async def sd_models(facade: FacadeOf, caller: Caller) -> list[dict[str, Any]]:
    """`defaults`, which A1111 has not: what fills the fields that a request leaves open; `state`: how near it is."""
    return [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": None,
            "sha256": None,
            "filename": model.name,
            "config": None,
            "defaults": model.defaults.model_dump(),
            "state": model.state.model_dump() if model.state else None,
        }
        for model in await facade.client.models()
    ]


@router.get("/options", responses=READ_ERRORS, summary="Get the settings")
async def options(request: Request, facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """The model of requests that name none, with its defaults, and fixed values."""
    workers = await facade.workers()
    default = next((str(w["default_model"]) for w in workers if w.get("default_model")), "")
    model = chosen_model(request, caller) or default
    known = {each.name: each.defaults for each in await facade.client.models()}
    return {
        "sd_model_checkpoint": model,
        "defaults": known.get(model.partition("@")[0], ModelDefaults()).model_dump(),
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


@router.post(
    "/options",
    responses=errors(401, 413, 422, 503),
    openapi_extra=request_body({"type": "object"}, example={"sd_model_checkpoint": "doodle"}),
    summary="Set the model of later requests",
)
async def set_options(request: Request, facade: FacadeOf, caller: Caller) -> dict[str, Any]:
    """Sets `sd_model_checkpoint` for this caller's key until the server stops; "" resets it.

    Other settings are accepted and ignored: `GET /sdapi/v1/options` still returns the values in effect.
    """
    body = await document(request)
    chosen: dict[str, str] = request.app.state.checkpoints
    if body.get("sd_model_checkpoint") == "":
        chosen.pop(caller.name, None)
    elif body.get("sd_model_checkpoint") is not None:
        name, known = checkpoint(body["sd_model_checkpoint"]), await _names(facade)
        if name.partition("@")[0] not in known:
            text = f"no model is named {name[:100]!r}; known models: {', '.join(known) or 'none yet'}"
            raise Rejected("unknown_model", text, field="sd_model_checkpoint")
        chosen[caller.name] = name
    return {}


@router.post(
    "/refresh-checkpoints",
    responses=READ_ERRORS,
    summary="Does nothing: the list of models is always current",
)
async def refresh_checkpoints(caller: Caller) -> dict[str, Any]:
    return {}


async def _names(facade: Facade) -> list[str]:
    """The models that may be named."""
    return [model.name for model in await facade.client.models()]


def _mount(name: str, make: Callable[[], Any]) -> None:
    async def empty(caller: Caller) -> Any:
        return make()

    router.add_api_route(
        f"/{name}",
        empty,
        methods=["GET"],
        responses=READ_ERRORS,
        include_in_schema=False,
        name=f"a1111 {name}",
    )


for _name in EMPTY_LISTS:
    _mount(_name, list)
for _name, _object in EMPTY_OBJECTS.items():
    _mount(_name, _object.copy)
