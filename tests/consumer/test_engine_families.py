"""Other families and precisions go through the same engine."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import UNet2DConditionModel

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn
from infra.models.cards import Cards

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("text2img", "img2img", "inpainting")


@pytest.fixture(scope="module")
def sdxl_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL: two text encoders, size conditioning, random weights."""
    from tests.studio import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny", tiny_folder)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path) -> ModelRegistry:
    """A registry that serves the tiny SDXL under the usual name."""
    return ModelRegistry(Cards.of([f"tiny={sdxl_folder}"]))


def test_sdxl_images_equal_their_solo_runs(sdxl, studio, task, alone, apart):
    """Two text encoders and size conditioning are stacked like everything else."""
    tasks = [task(f"{kind}{i}", task=kind, seed=i, steps=2 + i) for kind in TASKS for i in range(2)]
    room = studio(sdxl, max_rows=12)
    ended = room.draw(*tasks)

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert all(apart(ended[t.request, 0].picture, alone(sdxl, t)) <= 1 for t in tasks)
    assert room.engine.counters.unet_calls <= 4


def test_a_refiner_goes_on_from_a_picture_and_does_not_draw_from_words(
    sdxl_folder, tmp_path, studio, task, alone, apart
):
    """Its folder has the second text encoder only, and names the img2img pipeline."""
    from tests.studio import save_tiny_refiner

    save_tiny_refiner(tmp_path / "refiner", sdxl_folder)
    registry = ModelRegistry(Cards.of([f"tiny={tmp_path / 'refiner'}"]))
    tasks = [task(kind, task=kind, steps=2, negative_prompt="blue") for kind in TASKS]
    ended = studio(registry).draw(*tasks)

    refused = ended.pop(("text2img", 0))
    assert (refused.code, refused.field) == ("unsupported", "image")
    text = "model 'tiny' cannot do text2img; it does img2img, inpainting: give it a picture in `image`"
    assert refused.message == text
    assert all(apart(ended[t.request, 0].picture, alone(registry, t)) <= 1 for t in tasks[1:])


def test_bfloat16_images_stay_close_to_their_solo_runs(tiny_folder, studio, task, alone, apart):
    """In half precision the images beside one change its last bits only, and in exact mode not even those."""
    registry = ModelRegistry(Cards.of([f"tiny={tiny_folder}"]), dtype="bfloat16")
    tasks = [task(f"{kind}{i}", task=kind, seed=i, steps=2) for kind in TASKS for i in range(2)]
    shared = studio(registry, exact=True).draw(*tasks)
    for t in tasks:
        single = studio(registry, exact=True).draw(t)
        assert single[t.request, 0].picture == shared[t.request, 0].picture


def test_a_vae_that_needs_float32_gets_it_beside_a_float16_unet(tiny_folder, tmp_path, studio, task):
    """force_upcast in the VAE's config means float32 for the VAE alone, once and for all images."""
    folder = shutil.copytree(tiny_folder, tmp_path / "upcast")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": True}))
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]), dtype="float16")
    ended = studio(registry).draw(*[task(kind, task=kind, steps=2) for kind in TASKS])

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert str(registry.get("tiny").plain["text2img"].vae.dtype) == "torch.float32"


def test_a_pipeline_that_no_table_knows_is_drawn_one_image_at_a_time(
    tiny_folder, tmp_path, studio, task, alone, apart
):
    """This one hangs a hook into the shared UNet for as long as an image is drawn: in company it would be wrong."""
    folder = shutil.copytree(tiny_folder, tmp_path / "sag")
    index = folder / "model_index.json"
    index.write_text(
        json.dumps({**json.loads(index.read_text()), "_class_name": "StableDiffusionSAGPipeline"})
    )
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]))
    tasks = [task(f"r{i}", seed=i, steps=2 + i, width=64, height=64 + 64 * (i == 2)) for i in range(3)]
    room = studio(registry)
    most = 0
    for one in tasks:
        room.engine.submit(one)
    while room.engine.step():
        most = max(most, len(room.engine._in_flight))
    ended = room.ended()

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert most == 1
    assert all(apart(ended[t.request, 0].picture, alone(registry, t)) == 0 for t in tasks)
    refused = studio(registry).draw(task("picture", task="img2img"))["picture", 0]
    assert (refused.code, refused.field) == ("unsupported", "task")


@pytest.mark.parametrize(
    ("name", "why"),
    [("SomethingPipeline", "does not have"), ("WanPipeline", "does not draw a picture from a prompt")],
)
def test_a_pipeline_that_draws_no_pictures_is_refused_in_words(
    tiny_folder, tmp_path, studio, task, name, why
):
    """It is asked for a video, or this diffusers has no such class."""
    folder = shutil.copytree(tiny_folder, tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))
    ended = studio(ModelRegistry(Cards.of([f"tiny={folder}"]))).draw(task("x"))

    assert (ended["x", 0].code, ended["x", 0].field, ended["x", 0].retry) == ("unsupported", "model", False)
    assert f"its pipeline is {name}" in ended["x", 0].message
    assert why in ended["x", 0].message


def test_a_model_made_for_inpainting_does_nothing_else(tiny_folder, tmp_path, studio, task, alone, apart):
    """A UNet of nine channels repaints; asked for anything else it is rejected with what it can do."""
    torch.manual_seed(6)
    folder = shutil.copytree(tiny_folder, tmp_path / "inpaint")
    config = dict(UNet2DConditionModel.load_config(folder / "unet"))
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]))
    repaint = task("repaint", task="inpainting", strength=1.0)
    ended = studio(registry).draw(task("words"), repaint)

    assert (ended["words", 0].code, ended["words", 0].field) == ("unsupported", "task")
    assert "it does inpainting" in ended["words", 0].message
    assert apart(ended["repaint", 0].picture, alone(registry, repaint)) <= 1
