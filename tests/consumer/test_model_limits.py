"""What a model, its text encoder or a sampler cannot do is the caller's mistake, told with field and bound."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.renderer.protocol import Drawn
from schemas import samplers
from schemas.errors import Rejected
from schemas.manifest import validate_manifest

STEPS = (1, 2, 3, 4, 5, 10, 50, 150)
STRENGTHS = (0.01, 0.1, 0.5, 0.8, 1.0)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


def _steps(name: str) -> list[int]:
    """Those that the contract allows with this sampler."""
    return [steps for steps in STEPS if steps <= samplers._MAX_STEPS.get(name, steps)]


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_does_every_number_of_steps_at_every_strength(name, registry, studio, task):
    """No allowed value ends in an error of diffusers' own."""
    tasks = [task(f"{steps}", scheduler=name, steps=steps, cfg_scale=1.0) for steps in _steps(name)]
    tasks += [
        task(
            f"{steps} {strength}",
            task="img2img",
            scheduler=name,
            steps=steps,
            strength=strength,
            cfg_scale=1.0,
        )
        for steps in _steps(name)
        for strength in STRENGTHS
    ]
    ended = studio(registry, max_rows=64).draw(*tasks)
    assert [one for one in ended.values() if not isinstance(one, Drawn)] == []


def test_sizes_guidance_and_words_that_are_allowed_are_drawn(registry, studio, task):
    """The smallest and the longest pictures, and words that are odd."""
    sizes = [(8, 8), (8, 16), (24, 24), (8, 256), (256, 8), (40, 56)]
    words = ["\0", "\n", "<|endoftext|>", "<|startoftext|>" * 40, "x" * 8000, "\u200b", "\U0001f600"]
    tasks = [
        task(f"{width}x{height} {kind}", task=kind, width=width, height=height, steps=2)
        for width, height in sizes
        for kind in ("text2img", "img2img", "inpainting")
    ]
    tasks += [task(f"cfg {cfg}", cfg_scale=cfg, steps=2) for cfg in (0.0, 0.5, 1.0, 1.0001, 50.0)]
    tasks += [task(f"words {n}", prompt=text, negative_prompt=text, steps=1) for n, text in enumerate(words)]
    tasks += [
        task(f"{kind} {strength} {steps}", task=kind, strength=strength, steps=steps)
        for kind in ("img2img", "inpainting")
        for strength in (1e-300, 0.001, 0.999999999)
        for steps in (1, 3)
    ]
    ended = studio(registry, max_rows=32).draw(*tasks)
    assert [one for one in ended.values() if not isinstance(one, Drawn)] == []


@pytest.mark.parametrize(
    ("fields", "field", "bound"),
    [
        *(({"clip_skip": skip}, "clip_skip", "at most 2 is possible") for skip in (3, 4, 12)),
        ({"width": 36}, "width", "draws multiples of 8"),
        ({"steps": 1001}, "steps", "at most 1000 is possible"),
        ({"steps": 1001, "scheduler": "Euler a"}, "steps", "at most 1000 is possible"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_the_bound(
    fields: dict[str, Any], field: str, bound: str, registry, studio, task
):
    """At the first attempt; it was `the pipeline failed: IndexError`."""
    ended = studio(registry).draw(task("bad", **fields), task("most", clip_skip=2, steps=1))
    bad = ended["bad", 0]
    assert (bad.code, bad.field, bad.retry) == ("invalid_manifest", field, False)
    assert bound in bad.message
    assert isinstance(ended["most", 0], Drawn)


@pytest.mark.parametrize("name", samplers.names())
def test_a_schedule_that_a_model_does_not_allow_names_the_scheduler(name, make_registry, studio, task):
    """Karras' sigmas at zero terminal SNR repeat a timestep: some of diffusers' schedulers count over their end."""
    registry = make_registry()
    registry.get("tiny").scheduler_config.update(ZERO_SNR)
    ended = studio(registry, max_rows=64).draw(
        *(task(f"{steps}", scheduler=name, steps=steps, cfg_scale=1.0) for steps in _steps(name))
    )
    for one in ended.values():
        if not isinstance(one, Drawn):
            assert (one.code, one.field, one.retry) == ("unsupported", "scheduler", False)
            assert name in one.message
    if name in ("DPM++ 2M Karras", "UniPC Karras"):
        assert not isinstance(ended["50", 0], Drawn)


@pytest.mark.parametrize("name", ["LCM", "TCD", "lcm", "LCMScheduler", "k_lcm"])
def test_a_samplers_own_limit_is_known_without_the_model(name: str):
    """So the facade answers 422."""
    validate_manifest({"prompt": "x", "scheduler": name, "steps": 50})
    with pytest.raises(Rejected, match="can do at most 50") as refused:
        validate_manifest({"prompt": "x", "scheduler": name, "steps": 51})
    assert (refused.value.code, refused.value.field) == ("invalid_manifest", "steps")
