"""A tiny Stable Diffusion with random weights, made on the spot and loaded as any model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from consumer.cards import Cards
from consumer.model_registry import ModelRegistry
from consumer.tasks import Drawn, ImageTask, RawPicture, Undrawable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def pytest_configure(config: pytest.Config) -> None:
    """diffusers 0.42 hands torch tensors to numpy 2 in a way that numpy is going to drop."""
    config.addinivalue_line("filterwarnings", "ignore:__array:DeprecationWarning")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with safetensors: UNet (16, 32), an 8x VAE, a 2-layer text encoder, 16 tokens."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,.0123456789"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=16)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def make_registry(tiny_folder: Path) -> Callable[..., ModelRegistry]:
    """Make a registry that serves "tiny" and whatever else is asked for."""

    def make(**settings: Any) -> ModelRegistry:
        cards = Cards.of([f"tiny={tiny_folder}", *settings.pop("extra", [])])
        return ModelRegistry(cards, **settings)

    return make


@pytest.fixture(scope="session")
def registry(tiny_folder: Path) -> ModelRegistry:
    """One registry for all tests that do not change the model."""
    return ModelRegistry(Cards.of([f"tiny={tiny_folder}"]))


@pytest.fixture(scope="session")
def task() -> Callable[..., ImageTask]:
    """Make a task; every field has a default, pictures included."""

    def make(request: str = "r", **fields: Any) -> ImageTask:
        kind = fields.get("task", "text2img")
        width, height = fields.get("width", 32), fields.get("height", 32)
        defaults: dict[str, Any] = {
            "request": request,
            "index": 0,
            "task": kind,
            "model": "tiny",
            "prompt": "a red dot",
            "negative_prompt": None,
            "width": width,
            "height": height,
            "steps": 3,
            "cfg_scale": 5.0,
            "seed": 1,
            "scheduler": "DDIM",
        }
        if kind != "text2img":
            defaults |= {"image": _gradient(width, height), "strength": 0.8}
        if kind == "inpainting":
            defaults["mask"] = _half_mask(width, height)
        return ImageTask(**{**defaults, **fields})

    return make


def _gradient(width: int, height: int) -> RawPicture:
    data = bytes(v for y in range(height) for x in range(width) for v in (x * 7 % 256, y * 7 % 256, 128))
    return RawPicture(width, height, 3, data)


def _half_mask(width: int, height: int) -> RawPicture:
    """White on the right half."""
    row = bytes(0 if x < width // 2 else 255 for x in range(width))
    return RawPicture(width, height, 1, row * height)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from more threads, and lose much on a busy machine."""
    import torch

    torch.set_num_threads(1)


class Studio:
    """An engine, and everything that it said."""

    def __init__(self, registry: ModelRegistry, **settings: Any) -> None:
        from consumer.engine import Engine

        self.said: list[Any] = []
        self.engine = Engine(registry, emit=self.said.append, **{"max_rows": 8, **settings})

    def draw(self, *tasks: ImageTask) -> dict[tuple[str, int], Any]:
        """Submit, run until nothing is left, and return what became of each image."""
        for task in tasks:
            self.engine.submit(task)
        while self.engine.step():
            pass
        return self.ended()

    def ended(self) -> dict[tuple[str, int], Any]:
        return {(e.request, e.index): e for e in self.said if isinstance(e, Drawn | Undrawable)}


@pytest.fixture(scope="session")
def studio() -> type[Studio]:
    """Make an engine that is listened to: studio(registry, **settings)."""
    return Studio


@pytest.fixture(scope="session")
def alone() -> Callable[[ModelRegistry, ImageTask], RawPicture]:
    """Draw a task by the plain diffusers pipeline, with no engine near it."""

    def draw(registry: ModelRegistry, task: ImageTask) -> RawPicture:
        from consumer import pipelines

        model = registry.get(task.model)
        model.adapters.ensure(task.loras)
        model.adapters.switch(task.loras)
        return pipelines.draw(pipelines.prepare(model.plain[task.task], task, model.scheduler_config), task)

    return draw


@pytest.fixture(scope="session")
def apart() -> Callable[[RawPicture, RawPicture], int]:
    """The greatest difference between two pictures, in grey levels."""
    import numpy as np

    def measure(one: RawPicture, other: RawPicture) -> int:
        a, b = (np.frombuffer(p.data, np.uint8).astype(int) for p in (one, other))
        return int(abs(a - b).max())

    return measure
