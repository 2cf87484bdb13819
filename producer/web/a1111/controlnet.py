"""ControlNet as A1111's extension has it: units in `alwayson_scripts.controlnet.args`, and its lists.

Names and values: the API page of sd-webui-controlnet. Preprocessors do not run here: a unit brings the finished control
picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from infra.pictures import decode_base64
from producer.overview import addons_of
from producer.web.a1111 import neutral
from producer.web.caller import Caller, FacadeOf
from producer.web.openapi import errors
from schemas.errors import Rejected

if TYPE_CHECKING:
    from schemas.limits import Limits

router = APIRouter(prefix="/controlnet", tags=["A1111"])
VERSION = 3  # of the extension's API, as clients know it
_ARGS = "alwayson_scripts.{script}.args.{place}"
#: A field of a unit to that of a manifest's ControlNet.
_FIELDS = {"model": "name", "weight": "scale", "guidance_start": "start", "guidance_end": "end"}
_PICTURES = ("image", "input_image")
#: Of preprocessors and memory, or the same as what happens: without effect on the picture.
_IGNORED = {
    "enabled", "low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "resize_mode",
    "save_detected_map", "hr_option", "is_ui", "input_mode", "use_preview_as_input", "generated_image",
    "inpaint_crop_input_image",
}  # fmt: skip
_BALANCED = (0, "0", "balanced", "controlmode.balanced")
_NO_MODULE = (
    "is {shown}; preprocessors do not run here: send the finished control picture, and none as the module"
)


def is_unit(script: str, arguments: Any) -> bool:
    """Whether a script of a body is ControlNet, with at least one unit that is on."""
    return script.lower() == "controlnet" and any(True for _ in _on(arguments))


def controls(body: Mapping[str, Any], limits: Limits, image: str | None) -> list[dict[str, Any]]:
    """The ControlNets of a body as a manifest has them.

    Args:
        image: what img2img starts from: the extension takes it for a unit without a picture.

    Raises:
        Rejected: a unit asks for what is not done here; it has the body's name of the field.
    """
    return [_control(unit, path, limits, image) for path, unit in _units(body)]


def names(body: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the manifest's ControlNets to their names in the body."""
    found: dict[str, str] = {}
    for number, (path, unit) in enumerate(_units(body)):
        inner = {ours: theirs for theirs, ours in _FIELDS.items()}
        inner["image"] = next((name for name in _PICTURES if unit.get(name)), "image")
        found |= {f"controlnet.{number}.{ours}": f"{path}.{theirs}" for ours, theirs in inner.items()}
        found[f"controlnet.{number}"] = path
    return found | ({"controlnet": found["controlnet.0"].rpartition(".")[0]} if found else {})


def without_pictures(scripts: Any) -> Any:
    """`alwayson_scripts` as a response repeats it."""
    if isinstance(scripts, Mapping):
        return {
            name: None if name in (*_PICTURES, "mask") else without_pictures(one)
            for name, one in scripts.items()
        }
    return [without_pictures(one) for one in scripts] if isinstance(scripts, list) else scripts


def _units(body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The units that are on, and their paths."""
    scripts = body.get("alwayson_scripts")
    for script, arguments in scripts.items() if isinstance(scripts, Mapping) else ():
        if script.lower() == "controlnet":
            for place, unit in _on(arguments):
                yield _ARGS.format(script=script, place=place), unit


def _on(script: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    units = script.get("args") if isinstance(script, Mapping) else script
    for place, unit in enumerate(units if isinstance(units, list) else ()):
        if isinstance(unit, Mapping) and unit.get("enabled", True) is not False:
            yield place, unit


def _control(unit: Mapping[str, Any], path: str, limits: Limits, image: str | None) -> dict[str, Any]:
    _check(unit, path)
    model = unit.get("model")
    if neutral.says_nothing(model) or not isinstance(model, str):
        raise Rejected.of_field(
            f"{path}.model", "is missing; GET /controlnet/model_list names those that are known"
        )
    field, picture = f"{path}.image", None
    for name in _PICTURES:
        if unit.get(name):
            field, picture = f"{path}.{name}", unit[name]
    if isinstance(picture, Mapping):  # as the extension's page sends it
        if not neutral.says_nothing(picture.get("mask")):
            raise Rejected.of_field(f"{field}.mask", "is not supported; leave it out")
        picture = picture.get("image")
    if picture:
        decode_base64(picture, field, limits)
    elif image is None:
        raise Rejected.of_field(field, "is missing; send the finished control picture in base64")
    made = {"name": model.rpartition(" [")[0] or model, "image": picture or image}
    for theirs, ours in _FIELDS.items():
        if theirs != "model" and unit.get(theirs) is not None:
            made[ours] = _number(unit[theirs], f"{path}.{theirs}")
    return made


def _check(unit: Mapping[str, Any], path: str) -> None:
    """Refuse what would draw another picture than the extension."""
    for name, value in unit.items():
        field = f"{path}.{name[:60]}"
        if name in (*_FIELDS, *_PICTURES, *_IGNORED) or neutral.says_nothing(value):
            continue
        if name == "guidance" and value == 1:  # as older versions call the end
            continue
        if name == "module":
            raise Rejected.of_field(field, _NO_MODULE.format(shown=repr(str(value)[:60])))
        if name == "control_mode":
            if (value.lower() if isinstance(value, str) else value) not in _BALANCED:
                text = f"is {str(value)[:60]!r}; here prompt and ControlNet are balanced: use Balanced, and `weight`"
                raise Rejected.of_field(field, text)
        else:
            raise Rejected.of_field(field, "is not supported; leave it out")


def _number(value: Any, field: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Rejected.of_field(field, "should be a number") from None


@router.get("/version", responses=errors(401, 503), summary="Get the version of the ControlNet API")
async def version(caller: Caller) -> dict[str, int]:
    return {"version": VERSION}


@router.get("/model_list", responses=errors(401, 503), summary="List ControlNets")
async def model_list(facade: FacadeOf, caller: Caller) -> dict[str, list[str]]:
    """Those that live workers know."""
    return {"model_list": sorted(addons_of(await facade.workers(), "controlnets"))}


@router.get("/module_list", responses=errors(401, 503), summary="List preprocessors: there are none")
async def module_list(caller: Caller) -> dict[str, Any]:
    return {"module_list": ["none"], "module_detail": {"none": {"model_free": False, "sliders": []}}}
