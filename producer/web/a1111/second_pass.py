"""A1111's hires fix and refiner as `upscale` and `refiner` of a manifest.

A1111 says how many steps of its second pass are drawn; a manifest says of how many steps the strength draws a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from producer.web.a1111.neutral import says_nothing
from schemas.errors import Rejected
from schemas.manifest_parts import Upscale, steps_to_draw
from schemas.result import Note

if TYPE_CHECKING:
    from schemas.limits import Limits

UPSCALER = "Lanczos"
NUMBERS = (
    "hr_scale", "hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_denoising_strength", "refiner_switch_at",
    "firstphase_width", "firstphase_height",
)  # fmt: skip
_STRENGTH, _SCALE, _SWITCH = 0.75, 2.0, 0.8  # A1111's defaults
#: What may not differ from the first pass, and how programs say that it does not.
_SAME = {
    "hr_checkpoint_name": ("use same checkpoint",),
    "hr_sampler_name": ("use same sampler",),
    "hr_scheduler": ("use same scheduler",),
    "hr_prompt": (),
    "hr_negative_prompt": (),
    "firstphase_width": (),
    "firstphase_height": (),
}
_FIRST = {"hr_prompt": "prompt", "hr_negative_prompt": "negative_prompt", "hr_sampler_name": "sampler_name"}


def names_in(body: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a manifest to their names in a body of A1111."""
    return {
        "upscale": "enable_hr",
        "upscale.scale": "hr_scale" if not _resize(body) else "hr_resize_x",
        "upscale.strength": "denoising_strength",
        "upscale.steps": "hr_second_pass_steps",
        "refiner": "refiner_checkpoint",
        "refiner.model": "refiner_checkpoint",
        "refiner.at": "refiner_switch_at",
    }


def upscale_of(body: Mapping[str, Any], limits: Limits, notes: list[Note]) -> dict[str, Any]:
    """The manifest fields of a hires fix; what is done otherwise than A1111 does it is added to the notes.

    Args:
        body: with numbers as numbers.

    Raises:
        Rejected: it asks for another model, sampler, prompt or shape in the second pass.
    """
    if says_nothing(body.get("enable_hr")):
        return {}
    for name, words in _SAME.items():
        value = body.get(name)
        same = isinstance(value, str) and value.lower() in words
        if not (says_nothing(value) or same or (name in _FIRST and value == body.get(_FIRST[name]))):
            text = f"is {str(value)[:60]!r}; the second pass is drawn as the first one is, so leave it out"
            raise Rejected.of_field(name, text)
    upscaler = body.get("hr_upscaler")
    if not says_nothing(upscaler) and str(upscaler).lower() != UPSCALER.lower():
        text = f"hr_upscaler {str(upscaler)[:60]!r} is not here: the picture is enlarged by {UPSCALER}"
        notes.append(Note(code="ignored", field="hr_upscaler", message=text))
    if not says_nothing(body.get("hr_cfg")) and body["hr_cfg"] not in (1, body.get("cfg_scale")):
        text = "hr_cfg is ignored: both passes are drawn with cfg_scale"
        notes.append(Note(code="ignored", field="hr_cfg", message=text))
    strength = body.get("hr_denoising_strength") or body.get("denoising_strength")
    strength = _STRENGTH if strength is None else strength
    upscale: dict[str, Any] = {"scale": _scale(body), "strength": strength}
    drawn = body.get("hr_second_pass_steps") or body.get("steps")
    if (
        _is_number(drawn)
        and _is_number(strength)
        and 0.01 <= strength <= 1
        and 1 <= drawn <= limits.max_steps
    ):
        steps = steps_to_draw(int(drawn), strength)
        upscale["steps"] = min(steps, limits.max_steps)
        if steps > limits.max_steps and (less := Upscale.model_validate(upscale).drawn_steps(steps)) < drawn:
            text = f"the second pass draws {less} steps: with this denoising_strength at most {limits.max_steps} of "
            notes.append(
                Note(code="ignored", field="hr_second_pass_steps", message=f"{text}{steps} are allowed")
            )
    elif body.get("hr_second_pass_steps"):
        upscale["steps"] = drawn  # what is wrong with it is said when the manifest is checked
    return {"upscale": upscale}


def refiner_of(body: Mapping[str, Any], model: str | None, notes: list[Note]) -> dict[str, Any]:
    """The manifest field of a refiner.

    Args:
        model: what `refiner_checkpoint` names; None without one.
    """
    if model is None:
        return {}
    at = _SWITCH if body.get("refiner_switch_at") is None else body["refiner_switch_at"]
    if at == 1:
        text = "refiner_checkpoint is ignored: a refiner_switch_at of 1 leaves it no step"
        notes.append(Note(code="ignored", field="refiner_checkpoint", message=text))
        return {}
    if not says_nothing(body.get("enable_hr")):
        text = "the refiner ends the first pass, and the second one is drawn by the model itself"
        notes.append(Note(code="ignored", field="refiner_checkpoint", message=text))
    return {"refiner": {"model": model, "at": at}}


def _scale(body: Mapping[str, Any]) -> Any:
    """How much larger the second pass is. Raises `Rejected`."""
    sides = _resize(body)
    if not sides:
        return _SCALE if body.get("hr_scale") is None else body["hr_scale"]
    whole = {name: body.get(name) for name in ("width", "height")}
    if not all(_is_number(side) and side > 0 for side in whole.values()):
        raise Rejected.of_field(min(sides), "needs width and height as well; or give hr_scale")
    scales = [side / whole["width" if name == "hr_resize_x" else "height"] for name, side in sides.items()]
    if max(scales) - min(scales) > 0.001:
        text = f"and hr_resize_y are {sides['hr_resize_x']} x {sides['hr_resize_y']}, another shape than "
        raise Rejected.of_field(
            "hr_resize_x", f"{text}{whole['width']} x {whole['height']}; give one of them"
        )
    return scales[0]


def _resize(body: Mapping[str, Any]) -> dict[str, Any]:
    sides = {name: body.get(name) for name in ("hr_resize_x", "hr_resize_y")}
    return {name: side for name, side in sides.items() if _is_number(side) and side > 0}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
