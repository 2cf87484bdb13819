"""Other families and precisions go through the same engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
    import json
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "upcast")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": True}))
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]), dtype="float16")
    ended = studio(registry).draw(*[task(kind, task=kind, steps=2) for kind in TASKS])

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert str(registry.get("tiny").plain["text2img"].vae.dtype) == "torch.float32"


def test_a_model_made_for_inpainting_does_nothing_else(tiny_folder, tmp_path, studio, task, alone, apart):
    """A UNet of nine channels repaints; asked for anything else it is rejected with what it can do."""
    import shutil

    import torch
    from diffusers import UNet2DConditionModel

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
