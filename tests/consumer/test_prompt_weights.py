"""Prompts with weights: drawn as compel and a plain pipeline draw them, joined as alone, or refused by name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from compel import Compel
from diffusers import StableDiffusionPipeline

from consumer.engine.loading import weights
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, SecondModel, Undrawable
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task, save_tiny_refiner, save_tiny_sdxl
from tests.tiny.families import save

if TYPE_CHECKING:
    from pathlib import Path

    from consumer.renderer.protocol import RawPicture

LONG = "a (red:1.4) dot, " + "on a wide and blue sea, " * 3 + "[cold] BREAK at night"


@pytest.fixture(scope="module")
def models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    place = tmp_path_factory.mktemp("weights")
    base = save_tiny_sdxl(place / "base", tiny_folder)
    folders = {"tiny": tiny_folder, "base": base, "refiner": save_tiny_refiner(place / "refiner", base)}
    folders |= {name: save(name, place / name) for name in ("lcm", "flux")}
    return ModelRegistry(Cards.of([f"{name}={folder}" for name, folder in folders.items()]))


def weighted(request: str = "r", **fields: Any) -> Any:
    return make_task(request, **{"prompt": "a (red:1.5) dot", "weights": True, **fields})


def drawn(models: ModelRegistry, task: Any) -> RawPicture:
    event = Studio(models).draw(task)[task.request, 0]
    assert isinstance(event, Drawn), event
    return event.picture


@pytest.mark.parametrize(
    ("ours", "compels"),
    [
        ("a (red:1.5) dot", "a (red)1.5 dot"),
        ("a (red:0.4) dot", "a (red)0.4 dot"),
        ("a (red dot on (blue:2):0.5)", "a (red dot on )0.5(blue)1.0"),
    ],
)
def test_it_is_the_picture_of_a_plain_pipeline_with_compels_embeddings(
    models: ModelRegistry, tiny_folder: Path, ours: str, compels: str
) -> None:
    """A1111's syntax here, compel's own there."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    compel = Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, truncate_long_prompts=False)
    wanted, avoided = compel.pad_conditioning_tensors_to_same_length([compel(compels), compel("")])
    expected = pipe(
        prompt_embeds=wanted,
        negative_prompt_embeds=avoided,
        width=32,
        height=32,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(1),
    ).images[0]
    picture = drawn(models, weighted(prompt=ours))
    pixels = np.frombuffer(picture.data, np.uint8).reshape(32, 32, 3).astype(int)
    assert abs(pixels - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("model", ["tiny", "base"])
@pytest.mark.parametrize("skip", [None, 2])
def test_a_weight_of_nearly_one_changes_nothing_and_a_larger_one_does(
    models: ModelRegistry, model: str, skip: int | None
) -> None:
    """So every encoder is read as the pipeline reads it: layer, norm, pooled vector and negative prompt."""
    common = {"model": model, "clip_skip": skip}
    for negative in (None, "blue"):
        plain = drawn(models, make_task(prompt="a red dot", negative_prompt=negative, **common))
        one = drawn(models, weighted(prompt="a (red:1.0001) dot", negative_prompt=negative, **common))
        assert grey_levels_apart(plain, one) <= 1
    assert grey_levels_apart(plain, drawn(models, weighted(prompt="a (red:3) dot", **common))) > 1


def test_escapes_and_a_weight_of_one_are_plain_words(models: ModelRegistry) -> None:
    """Every model draws them, one without CLIP's encoders, too."""
    for model, scheduler in (("tiny", "DDIM"), ("flux", "Flow Euler")):
        common = {"model": model, "scheduler": scheduler, "steps": 2}
        words = drawn(models, make_task(prompt="a dot (red)", **common))
        assert words == drawn(models, weighted(prompt=r"a (dot:1.0) \(red\)", **common))


@pytest.mark.parametrize("exact", [False, True])
def test_weighted_prompts_join_and_are_drawn_as_alone(models: ModelRegistry, exact: bool) -> None:
    """Of several lengths, with two encoders, a refiner, and plain prompts beside them."""
    tasks = [
        weighted("a", seed=1),
        weighted("b", seed=2, prompt=LONG, steps=4),
        weighted("c", seed=3, prompt="a dot", negative_prompt="(blue:1.3) and [grey]"),
        make_task("d", seed=4),
        weighted("e", seed=5, model="base", prompt=LONG, clip_skip=2),
        weighted("f", seed=6, model="base", negative_prompt="a (b:0.3) BREAK c"),
        weighted("h", seed=8, model="lcm", scheduler="LCM", cfg_scale=8.0),
        weighted("g", seed=7, model="base", steps=4, refiner=SecondModel("refiner", 0.5)),
    ]
    together = Studio(models, exact=exact).draw(*tasks)
    for task in tasks:
        event = together[task.request, 0]
        assert isinstance(event, Drawn), event
        assert event.warnings == ()  # a long one is read whole
        if exact:
            assert event.picture == Studio(models, exact=True).draw(task)[task.request, 0].picture
        else:
            assert grey_levels_apart(event.picture, draw_alone(models, task)) <= 1


def test_encoders_are_called_through_the_engine_and_remembered(models: ModelRegistry) -> None:
    """A prompt that comes again is not read again, however it is weighted."""
    models.embeddings.forget()
    room = Studio(models)
    room.draw(weighted("a"))
    calls = room.engine.counters.text_calls
    room.draw(weighted("b", seed=2), weighted("c", prompt="a (red:2) dot"))
    assert calls > 0
    assert room.engine.counters.text_calls == calls


@pytest.mark.parametrize(
    ("fields", "field"), [({}, "prompt"), ({"prompt": "x", "negative_prompt": "[y]"}, "negative_prompt")]
)
def test_a_model_without_clip_refuses_weights(
    models: ModelRegistry, fields: dict[str, Any], field: str
) -> None:
    """By the field, with how to write brackets that are to be drawn."""
    (event,) = Studio(models).draw(weighted(model="flux", scheduler="Flow Euler", **fields)).values()
    assert isinstance(event, Undrawable)
    assert (event.code, event.field, event.retry) == ("unsupported", field, False)
    assert r"write \( and \[" in event.message


def test_a_plan_of_an_older_worker_is_drawn_as_words(models: ModelRegistry) -> None:
    """Images of one result may be of two versions, so the plan says how its prompts are read."""
    words = make_task(prompt="a (red:1.5) dot")
    assert drawn(models, words) == draw_alone(models, words)
    assert grey_levels_apart(drawn(models, words), drawn(models, weighted())) > 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("CUDA error: launch failure")]
)
def test_a_device_s_error_is_not_the_prompt_s(models: ModelRegistry, error: RuntimeError) -> None:
    """It is tried again, or ends the process; only what compel cannot read is refused."""

    def encoder(*_args: Any, **_given: Any) -> Any:
        raise error

    pipe = copy.copy(models.get("tiny").plain["text2img"])
    vars(pipe)["text_encoder"] = encoder
    with pytest.raises(type(error), match=str(error)):
        weights.spoken(pipe, weighted())
