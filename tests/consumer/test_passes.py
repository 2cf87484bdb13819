"""Images of two passes: an enlarged picture that is redrawn, and a refiner that goes on from latents.

The models are genuine pipelines with random weights. What the engine draws is compared with two plain calls of
diffusers, and with itself when nobody else is there.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import (
    Control,
    DeviceCall,
    Drawn,
    Enlarged,
    RawPicture,
    SecondModel,
    Stepped,
    Undrawable,
)
from infra.models.addons.known import Addons
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task, save_tiny_refiner, save_tiny_sdxl
from tests.tiny.addons import picture, save_controlnet
from tests.tiny.families import save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TWICE = Enlarged(64, 64, steps=4, strength=0.5)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: an SD, an SDXL and its refiner, a transformer, and a model that has no img2img."""
    place = tmp_path_factory.mktemp("passes")
    base = save_tiny_sdxl(place / "base", tiny_folder)
    refiner = save_tiny_refiner(place / "refiner", base)
    return {
        "tiny": tiny_folder,
        "base": base,
        "refiner": refiner,
        **{name: save(name, place / name) for name in ("flux", "pixart")},
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> ModelRegistry:
    return ModelRegistry(Cards.of([f"{name}={folder}" for name, folder in folders.items()]))


def refined(request: str = "r", **fields: Any) -> Any:
    return make_task(
        request, **{"model": "base", "steps": 5, "refiner": SecondModel("refiner", 0.6), **fields}
    )


def ticking() -> Callable[[], float]:
    """A clock that counts its readings, so that shares of time do not depend on the machine."""
    ticks = itertools.count()
    return lambda: next(ticks) / 1000


def pixels(picture: RawPicture) -> Any:
    return np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)


def test_an_upscale_is_two_plain_calls_of_diffusers(models: ModelRegistry, folders: dict[str, Path]) -> None:
    """Text2img, its picture enlarged by Lanczos' filter, img2img with the same noise generator."""
    task = make_task(steps=3, upscale=TWICE, seed=7)
    drawn = Studio(models).draw(task)["r", 0].picture

    pipe = StableDiffusionPipeline.from_pretrained(folders["tiny"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(7)
    said = {"prompt": task.prompt, "guidance_scale": 5.0, "generator": noise}
    small = pipe(**said, width=32, height=32, num_inference_steps=3).images[0]
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    large = small.resize((64, 64), Image.Resampling.LANCZOS)
    expected = again(**said, image=large, strength=0.5, num_inference_steps=4).images[0]

    assert (drawn.width, drawn.height) == (64, 64)
    assert abs(pixels(drawn).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert abs(pixels(drawn).astype(int) - np.asarray(large).astype(int)).max() > 10  # it was redrawn


def test_a_refiner_is_the_documented_ensemble_of_diffusers(
    models: ModelRegistry, folders: dict[str, Path]
) -> None:
    """The base until `denoising_end`, its latents to the refiner from `denoising_start`."""
    drawn = Studio(models).draw(refined(seed=7))["r", 0]

    base = StableDiffusionXLPipeline.from_pretrained(folders["base"], add_watermarker=False)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(folders["refiner"], add_watermarker=False)
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(7)
    said = {"prompt": "a red dot", "guidance_scale": 5.0, "generator": noise, "num_inference_steps": 5}
    latents = base(**said, width=32, height=32, denoising_end=0.6, output_type="latent").images
    expected = refiner(**said, image=latents, denoising_start=0.6).images[0]

    assert abs(pixels(drawn.picture).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert (drawn.model["name"], drawn.refiner["name"]) == ("base", "refiner")
    alone = Studio(models).draw(refined(seed=7, refiner=None))["r", 0]
    assert grey_levels_apart(drawn.picture, alone.picture) > 10
    assert alone.refiner == {}
    itself = Studio(models).draw(refined(seed=7, refiner=SecondModel("base", 0.6)))["r", 0]
    assert itself.refiner["name"] == "base"  # also where it is the same model once more


def scene() -> list[Any]:
    """Tasks of one and two passes, which differ in everything; of the second pass's size there are others, too."""
    return [
        make_task("a", seed=1, steps=3, upscale=TWICE),
        make_task(
            "b", seed=2, steps=5, upscale=Enlarged(64, 64, 6, 0.7), prompt="a blue dot", scheduler="Euler a"
        ),
        make_task("c", seed=3, width=64, height=64, steps=8, cfg_scale=1.0),
        make_task("d", seed=4, task="img2img", upscale=TWICE, scheduler="DPM++ 2M"),
        refined("e", seed=5),
        refined(
            "f", seed=6, steps=7, refiner=SecondModel("refiner", 0.5), scheduler="Euler a", prompt="two dots"
        ),
        refined("g", seed=7, task="img2img", strength=0.9),
        refined("h", seed=8, upscale=TWICE),
        make_task("i", seed=9, model="base", steps=6),
        make_task("j", seed=10, model="flux", scheduler="Flow Euler", upscale=TWICE),
    ]


@pytest.mark.parametrize("exact", [False, True])
def test_passes_join_and_are_drawn_as_alone(models: ModelRegistry, exact: bool) -> None:
    """Each is at most a grey level from what it is alone; in exact mode the same bytes, whoever is there."""
    tasks = scene()
    room = Studio(models, max_rows=8, exact=exact, progress_every=0.0)
    together = room.draw(*tasks)
    assert all(isinstance(event, Drawn) for event in together.values())
    for task in tasks:
        picture = together[task.request, 0].picture
        if exact:
            assert picture == Studio(models, max_rows=8, exact=True).draw(task)[task.request, 0].picture
        else:
            assert grey_levels_apart(picture, draw_alone(models, task)) <= 1
    assert room.engine.counters.unet_calls < 0.7 * sum(steps for _, steps in map(told, [room] * 10, tasks))


def told(room: Studio, task: Any) -> tuple[int, int]:
    """The last that was told of a task's steps."""
    return next(
        event.steps[task.request, 0]
        for event in reversed(room.events)
        if isinstance(event, Stepped) and (task.request, 0) in event.steps
    )


def test_a_second_pass_shares_calls_with_others_of_its_size(models: ModelRegistry) -> None:
    """Two enlarged pictures and a plain img2img of that size: the calls of the second passes have all rows."""
    tasks = [make_task(f"r{i}", seed=i, steps=2, upscale=TWICE) for i in range(2)]
    tasks.append(make_task("i", task="img2img", width=64, height=64, steps=12))
    room = Studio(models, max_rows=8, progress_every=0.0, clock=ticking())
    room.draw(*tasks)
    told = [call for event in room.events if isinstance(event, Stepped) for call in event.calls]
    large = [call for call in told if call.kind == "unet" and call.pixels == 64 * 64]

    assert max(call.rows for call in large) == 6
    assert {call.pixels for call in told} == {32 * 32, 64 * 64}
    assert all(isinstance(call, DeviceCall) for call in told)


def test_progress_counts_the_steps_of_all_passes(models: ModelRegistry) -> None:
    """What is told goes up by one step at a time, to the steps of both."""
    for task, steps in ((make_task(steps=3, upscale=TWICE), 5), (refined(), 5), (refined(upscale=TWICE), 7)):
        room = Studio(models, progress_every=0.0)
        room.draw(task)
        told = [event.steps["r", 0] for event in room.events if isinstance(event, Stepped) and event.steps]
        done = [one for one, _ in told]
        assert done == sorted(done)
        assert set(done) >= set(range(1, steps + 1)) - {steps}
        assert {total for _, total in told} == {steps}


def test_admission_counts_the_passes(models: ModelRegistry) -> None:
    """While the second pass is full, no more images begin that lead there; plain ones of the first size do."""
    room = Studio(models, max_rows=4, clock=ticking())
    engine = room.engine
    for i in range(8):
        engine.submit(make_task(f"u{i}", seed=i, steps=1, upscale=Enlarged(64, 64, 6, 1.0)))
    engine.submit(make_task("plain", steps=1))
    most, began = 0, dict[str, None]()
    while engine.step():
        most = max(most, len(engine._in_flight))
        began |= dict.fromkeys(image.task.request for image in engine._in_flight)
    assert len(room.ended()) == 9
    assert most <= 6  # two images a pass, those that come in between, and the plain one
    assert list(began).index("plain") <= 5  # not behind those that were there before it


def test_both_models_are_held_while_an_image_needs_both(
    models: ModelRegistry, folders: dict[str, Path]
) -> None:
    """Under a budget for two models, a third one waits; an image that needs more than there is says so."""
    both = models.get("base").bytes + models.get("refiner").bytes
    cards = Cards.of([f"{name}={folders[name]}" for name in ("base", "refiner", "tiny")])
    registry = ModelRegistry(cards, memory_budget=both)
    tasks = [refined("r0"), make_task("t", model="tiny", steps=1), refined("r1", seed=2)]
    ended = Studio(registry).draw(*tasks)
    assert [type(event) for event in ended.values()] == [Drawn] * 3
    assert registry.loads == 3  # those with two models first, as they are there

    small = ModelRegistry(cards, memory_budget=sum(map(models.size_of, ("base", "refiner"))) - 1)
    (event,) = Studio(small).draw(refined()).values()
    assert (event.code, event.field, event.retry) == ("model_unavailable", "refiner.model", False)
    assert "in memory together" in event.message
    assert small.loads == 0


def test_what_guides_the_first_model_counts_beside_the_refiner(
    models: ModelRegistry, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Both models stay while the image needs them; where the three do not fit together, it is refused once."""
    addons = Addons.of([f"net={save_controlnet(folders['base'], tmp_path / 'net')}"])
    texts = [f"{name}={folders[name]}" for name in ("base", "refiner")]
    cards = dataclasses.replace(Cards.of(texts), addons=addons)
    both = models.get("base").bytes + models.get("refiner").bytes
    asked = {"controls": (Control("net", 1.0, 0.0, 1.0),), "pictures": {"controlnet.0.image": picture(1)}}
    (event,) = Studio(ModelRegistry(cards, memory_budget=both)).draw(refined(**asked)).values()

    assert (event.code, event.retry) == ("model_unavailable", False)
    assert "what guides the request, together with 'base' and 'refiner', needs" in event.message

    asked |= {"task": "img2img", "strength": 0.9}
    (event,) = Studio(ModelRegistry(cards)).draw(refined(**asked)).values()
    assert (event.field, event.retry) == ("controlnet", False)
    assert "stops early for a refiner; leave one of them out" in event.message


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        (
            {"model": "pixart", "scheduler": "DPM++ 2M", "upscale": TWICE},
            "upscale",
            "img2img, which model 'pixart'",
        ),
        ({"model": "tiny", "refiner": SecondModel("refiner", 0.5)}, "refiner.model", "'tiny' cannot"),
        (
            {"model": "base", "refiner": SecondModel("tiny", 0.5)},
            "refiner.model",
            "is 'tiny', which cannot go on",
        ),
        ({"model": "base", "refiner": SecondModel("other", 0.5)}, "refiner.model", "known are"),
        ({"upscale": Enlarged(60, 60, 4, 0.5)}, "upscale", "multiples of 8"),
    ],
)
def test_what_cannot_follow_is_refused_by_field(
    models: ModelRegistry, fields: dict[str, Any], field: str, words: str
) -> None:
    (event,) = Studio(models).draw(make_task(**fields)).values()
    assert isinstance(event, Undrawable)
    assert (event.field, event.retry) == (field, False)
    assert words in event.message


def test_a_canceled_image_ends_in_any_pass(models: ModelRegistry) -> None:
    """Nothing of it is drawn any more, and the others go on."""
    room = Studio(models)
    room.engine.submit(make_task("gone", steps=1, upscale=Enlarged(64, 64, 50, 1.0)))
    room.engine.submit(make_task("stays", steps=2, upscale=TWICE))
    for _ in range(12):
        room.engine.step()
    room.engine.cancel("gone")
    assert list(room.draw()) == [("stays", 0)]
