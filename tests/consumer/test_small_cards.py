"""Large models on small cards: weights in 8 bits, and modules that make way for one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from consumer.engine.devices import Offload
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, Lora, Undrawable
from infra.models.cards import Cards
from infra.models.model_files import check
from tests.studio import Studio, grey_levels_apart, make_task, save_tiny
from tests.tiny.families import save

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = ("sd", "flux", "sd3", "qwen_image", "z_image", "klein", "lumina2", "sana", "chroma", "pixart")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "model"
    return save_tiny(place) if request.param == "sd" else save(request.param, place, loud=1.0)


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # in Chroma
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_draws_with_weights_in_8_bits(folder: Path, dtype: str) -> None:
    """Nearly the same picture, in the memory that the folder's headers promised; the result says it."""
    cards, pictures = Cards.of([f"tiny={folder}"]), {}
    for kind in ("off", "fp8"):
        registry = ModelRegistry(cards, dtype=dtype, quantize=kind)
        model = registry.get("tiny")
        tasks = [make_task(f"r{i}", seed=i, steps=2, scheduler=model.card.scheduler) for i in range(2)]
        ended = Studio(registry).draw(*tasks)
        assert all(isinstance(event, Drawn) for event in ended.values()), ended
        promised = check(folder).bytes_at(getattr(torch, dtype).itemsize, kind)
        assert 0.94 * promised <= model.bytes <= 1.06 * promised  # vectors are not told apart
        pictures[kind] = ended["r0", 0]
    full, small = pictures["off"], pictures["fp8"]

    assert full.model["dtype"] == dtype
    assert small.model["dtype"] == f"{dtype}, weights fp8"
    assert 0 < grey_levels_apart(full.picture, small.picture) <= 60


def test_a_lora_on_weights_in_8_bits_is_refused_by_name(tiny_folder: Path, lora_file: Path) -> None:
    """peft would round its own weights to 8 bits; other requests are drawn."""
    registry = ModelRegistry(Cards.of([f"tiny={tiny_folder}"]), quantize="fp8", loras={"dots": lora_file})
    ended = Studio(registry).draw(make_task("with", loras=(Lora("dots", 1.0),)), make_task("without"))

    assert (ended["with", 0].field, ended["with", 0].retry) == ("loras", False)
    assert "--quantize fp8" in ended["with", 0].message
    assert isinstance(ended["without", 0], Drawn)


def test_the_memory_budget_counts_weights_as_they_are_kept(tiny_folder: Path) -> None:
    """A model that is too large in full fits in 8 bits."""
    cards = Cards.of([f"tiny={tiny_folder}"])
    found = check(tiny_folder)
    budget = (found.bytes_at(4) + found.bytes_at(4, "fp8")) // 2
    ended = {
        kind: Studio(ModelRegistry(cards, quantize=kind, memory_budget=budget)).draw(make_task())["r", 0]
        for kind in ("off", "fp8")
    }

    assert isinstance(ended["fp8"], Drawn)
    assert isinstance(ended["off"], Undrawable)
    assert "the budget is" in ended["off"].message


class Hook:
    """Stands for accelerate's, which needs a GPU: it writes down that its module was moved away."""

    def __init__(self, name: str, moved: list[str]) -> None:
        self.name, self.moved = name, moved

    def offload(self) -> None:
        self.moved.append(self.name)


def test_text_encoders_make_way_first_and_what_fits_stays() -> None:
    """A decoder that went to host memory after each step of 12 billion weights would cost seconds an image."""
    sizes = {"text": 5, "denoiser": 12, "vae": 1}
    moved: list[str] = []
    modules: dict[str, Any] = {name: torch.nn.Linear(1, n, bias=False) for name, n in sizes.items()}
    offload = Offload(room=4 * 14)  # bytes: numbers have four
    offload.hooks = [(module, Hook(name, moved)) for name, module in modules.items()]
    for name in ("text", "vae", "denoiser", "vae", "denoiser"):
        offload.make_way(modules[name])
    assert moved == ["text"]

    offload.make_way(modules["text"])
    assert moved == ["text", "denoiser"]

    offload.forget([modules["text"]])
    assert [one is modules["vae"] for one in offload.here] == [True]
