"""The operator's limits on a manifest, which are not part of its schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from schemas import samplers
from schemas.errors import Rejected
from schemas.text.strictjson import path_of_infinity

if TYPE_CHECKING:
    from schemas.limits import Limits
    from schemas.manifest import Manifest
    from schemas.plan import Plan

_CUT = 60  # characters of a value that a message shows


def check_limits(manifest: Manifest, limits: Limits) -> None:
    """Check what the manifest says; what it leaves open is checked when its plan is made. Raises `Rejected`."""
    check_numbers(manifest.chosen("steps"), manifest.chosen("cfg_scale"), limits)
    _check_bounds([("number_of_images", manifest.number_of_images, limits.max_images)])
    if manifest.chosen("steps") is not None:
        samplers.check_request(manifest.scheduler, manifest.steps)
    passes = manifest.upscale if manifest.task != "inpainting" else None
    if passes is not None and passes.steps is not None:
        _check_bounds([("upscale.steps", passes.steps, limits.max_steps)])
    if manifest.task == "text2img":
        width, height = manifest.width or 0, manifest.height or 0
        _check_bounds([("width", width, limits.max_side), ("height", height, limits.max_side)])
        if width * height > limits.max_pixels:
            raise Rejected.of_field(
                "width", f"x height is more than {limits.max_pixels:,} pixels; ask for a smaller picture"
            )
    for field, text in (("prompt", manifest.prompt), ("negative_prompt", manifest.negative_prompt or "")):
        if len(text) > limits.max_prompt_chars:
            raise Rejected.of_field(
                field, f"has {len(text):,} characters; at most {limits.max_prompt_chars:,} are allowed"
            )
    if (path := path_of_infinity(manifest.metadata)) is not None:
        raise Rejected.of_field(f"metadata.{path}"[:200], "is not a finite number, so it cannot be echoed")
    if len(json.dumps(manifest.metadata)) > limits.max_metadata_bytes:
        raise Rejected.of_field("metadata", f"is larger than {limits.max_metadata_bytes:,} bytes")
    if len(manifest.loras) > limits.max_loras:
        raise Rejected.of_field(
            "loras", f"names {len(manifest.loras)}; at most {limits.max_loras} can be combined"
        )
    if len(manifest.controlnet) > limits.max_controlnets:
        text = f"names {len(manifest.controlnet)}; at most {limits.max_controlnets} can be combined"
        raise Rejected.of_field("controlnet", text)


def check_numbers(steps: int | None, cfg_scale: float | None, limits: Limits) -> None:
    """Check steps and guidance, of a manifest or of a plan. Raises `Rejected`.

    Args:
        steps, cfg_scale: None where the model's card decides.
    """
    _check_bounds(
        [("steps", steps or 0, limits.max_steps), ("cfg_scale", cfg_scale or 0, limits.max_cfg_scale)]
    )


def check_upscaled(plan: Plan, size: tuple[int, int], multiple: int, limits: Limits) -> None:
    """Check the size to which a plan's picture is enlarged. Raises `Rejected`.

    Args:
        size: (width, height) of the picture, pixels.
        multiple: pixels; the model draws no other sides.
        limits: as they hold for the model.
    """
    if plan.upscale is None:
        return
    width, height = plan.upscale.size(*size, plan.model, multiple)
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise Rejected.of_field(
            "upscale.scale",
            f"is {plan.upscale.scale:g}, which makes {width} x {height}; with model {plan.model!r} this worker "
            f"draws at most {limits.max_pixels:,} pixels, and {limits.max_side} a side",
        )


def _check_bounds(bounds: list[tuple[str, float, float]]) -> None:
    for field, value, most in bounds:
        if value > most:
            shown = f"{value:g}" if isinstance(value, float) else shown_value(value)  # :g fails at 400 digits
            raise Rejected.of_field(field, f"is {shown}; this worker allows at most {most:g}")


def shown_value(given: Any) -> str:
    """The beginning of a value as JSON; a long list or object is not written out first."""
    if isinstance(given, str):
        given = given[:_CUT]
    elif isinstance(given, (list, dict)) and len(given) > _CUT:
        return "[...]" if isinstance(given, list) else "{...}"
    shown = json.dumps(given, default=str, ensure_ascii=False)
    return shown if len(shown) <= _CUT else shown[: _CUT - 3] + "..."
