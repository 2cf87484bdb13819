"""Every allowed value draws, or is refused at once with its field and a sentence; none is tried three times.

What is allowed is what `schemas.manifest` takes. The models are genuine pipelines with random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, Undrawable
from infra.models.cards import Cards
from schemas import samplers
from tests.studio import Studio, make_task, save_tiny
from tests.tiny.families import FAMILIES, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),  # in Chroma
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # one step of a shifted schedule
]

#: Of any model: values at their bounds.
ODD: list[dict[str, Any]] = [
    {"steps": 1, "cfg_scale": 0.0, "seed": 0},
    {"steps": 1, "seed": 2**63 - 1, "negative_prompt": ""},
    {"cfg_scale": 50.0, "prompt": "x" * 8000, "negative_prompt": "y" * 8000},
    {"cfg_scale": 1.0, "prompt": "\u200b", "negative_prompt": " "},
    {"clip_skip": 1, "prompt": "<|endoftext|><pad>\n\0"},
    {"clip_skip": 12},
    {"width": 8, "height": 8},
    {"width": 512, "height": 32, "steps": 1},
    {"task": "img2img", "steps": 1, "strength": 0.01},
    {"task": "img2img", "steps": 10, "strength": 0.1},
    {"task": "img2img", "steps": 2, "strength": None},
    {"task": "inpainting", "steps": 3, "strength": 0.34},
]
#: What is refused, by family: the number of the value above, and its field.
REFUSED: dict[str, dict[int, str]] = {
    "sd": {5: "clip_skip"},
    "sd3": {5: "clip_skip", 7: "width"},
    "lcm": {5: "clip_skip", 9: "scheduler"},
    "z_image": {7: "width"},
    "qwen_image": {0: "steps", 1: "steps", 7: "steps", 8: "steps"},  # its schedule divides by zero
    "sana": {6: "width"},
    "lumina2": {6: "width"},
    "klein": {8: "image", 9: "image", 10: "image"},  # it reads larger pictures only
}


def _registry(name: str, folder: Path) -> ModelRegistry:
    made = save_tiny(folder / "model") if name == "sd" else save(name, folder / "model")
    return ModelRegistry(Cards.of([f"tiny={made}"]))


@pytest.mark.parametrize("name", ["sd", *FAMILIES])
def test_values_at_their_bounds_draw_or_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """Sizes below a token, one step, hardly any strength, more layers skipped than there are, prompts of any kind."""
    registry = _registry(name, tmp_path)
    model = registry.get("tiny")
    tasks = [
        make_task(f"{i}", **{"steps": 2, "scheduler": model.card.scheduler, **odd})
        for i, odd in enumerate(ODD)
        if odd.get("task", "text2img") in model.templates
    ]
    ended = {
        int(request): event for (request, _), event in Studio(registry, max_rows=32).draw(*tasks).items()
    }
    refused = {i: event for i, event in ended.items() if isinstance(event, Undrawable)}

    assert {i: event.field for i, event in refused.items()} == REFUSED.get(name, {})
    assert not any(event.retry for event in refused.values())
    assert all(event.code in ("invalid_manifest", "unsupported") for event in refused.values())


@pytest.mark.parametrize("name", ["sd", "lcm", "pixart"])
def test_every_sampler_draws_few_steps_or_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """LCM's own pipeline failed with a TypeError; two samplers drew NaN from two steps of PixArt's schedule."""
    registry = _registry(name, tmp_path)
    tasks = [
        make_task(f"{sampler} {steps}", scheduler=sampler, steps=steps, width=16, height=16)
        for sampler in (samplers.names() if name != "lcm" else ("DDIM", "Euler a", "TCD", "LCM"))
        for steps in {"sd": (1,), "pixart": (2,)}.get(name, (1, 2))
    ]
    ended = {request: event for (request, _), event in Studio(registry, max_rows=32).draw(*tasks).items()}
    refused = {request for request, event in ended.items() if not isinstance(event, Drawn)}

    assert refused == ({"DPM2 a 2", "DPM2 a Karras 2"} if name == "pixart" else set())
    for request in refused:
        assert (ended[request].code, ended[request].field, ended[request].retry) == (
            "unsupported",
            "steps",
            False,
        )
        assert "ask for more" in ended[request].message
    if name == "lcm":
        warned = {r for r, event in ended.items() if "scheduler_replaced" in dict(event.warnings)}
        assert warned == {request for request in ended if not request.startswith("LCM")}


def test_an_operator_s_lcm_is_planned_with_its_own_sampler(tmp_path: Path) -> None:
    """So the plan names what is drawn, and `strict` refuses another."""
    card = Cards.of([f"tiny={save('lcm', tmp_path / 'model')}"]).get("tiny")
    name, why = samplers.for_model("Euler a", card.scheduler, flow=card.flow, one=card.one_sampler)

    assert (name, card.one_sampler) == ("LCM", True)
    assert "scheduler Euler a was not used" in why
