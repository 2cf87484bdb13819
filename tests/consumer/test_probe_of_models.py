"""A pipeline of a class that no table knows: calls are joined where that is proven at load, and only there.

The pipeline is a genuine one of diffusers with random weights; what must not be joined is spoilt in its denoiser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AuraFlowTransformer2DModel

from consumer.engine.denoisers import DENOISERS
from consumer.engine.loading import probe
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, Loaded
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import save

if TYPE_CHECKING:
    from pathlib import Path

TASKS = [
    make_task(
        f"r{i}", prompt=("a red fox", "a green hill", "a cat")[i], seed=i, steps=2 + i, scheduler="Flow Euler"
    )
    for i in range(3)
]
_forward = AuraFlowTransformer2DModel.forward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("aura_flow", tmp_path_factory.mktemp("unknown") / "model")


def registry_of(folder: Path, said: list[Any] | None = None) -> ModelRegistry:
    emit = said.append if said is not None else lambda _message: None
    return ModelRegistry(Cards.of([f"tiny={folder}"]), probing=True, emit=emit)


def draw(registry: ModelRegistry, **settings: Any) -> tuple[int, int]:
    """Denoiser calls of all tasks together, and the greatest difference from being drawn alone."""
    room = Studio(registry, **settings)
    ended = room.draw(*TASKS)
    drawn = [ended[task.request, 0] for task in TASKS]
    assert all(isinstance(one, Drawn) for one in drawn), drawn
    alone = [draw_alone(registry, task) for task in TASKS]
    apart = (grey_levels_apart(one.picture, other) for one, other in zip(drawn, alone, strict=True))
    return room.engine.counters.unet_calls, max(apart)


def test_what_is_proven_is_joined(folder: Path) -> None:
    """In 4 calls for 2, 3 and 4 steps, and the log says why."""
    said: list[Any] = []
    registry = registry_of(folder, said)
    model = registry.get("tiny")

    assert (model.joins, registry.joins("tiny")) == (True, True)
    assert draw(registry) == (4, pytest.approx(0, abs=1))
    (loaded,) = [message for message in said if isinstance(message, Loaded)]
    assert loaded.probed.startswith("proven")


class Hook:
    """Stands for accelerate's, which needs a GPU: it counts how often its module was moved to host memory."""

    moved = 0

    def offload(self) -> None:
        self.moved += 1


def test_with_offload_a_probe_leaves_nothing_on_the_device(folder: Path) -> None:
    """Drawn alone, its pipeline brings modules there that nobody counts."""
    registry, hook = registry_of(folder), Hook()
    registry.offloading.hooks.append((torch.nn.Linear(1, 1), hook))
    assert registry.get("tiny").joins
    assert (hook.moved, registry.offloading.here) == (1, [])


def test_without_a_probe_images_are_drawn_one_at_a_time(folder: Path) -> None:
    """As in exact mode, where company must change no byte."""
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]))
    assert draw(registry) == (9, 0)


def _with_company(
    self: Any, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, **more: Any
) -> Any:
    """Text is read in the light of that of all others in the call."""
    text = encoder_hidden_states + encoder_hidden_states[-1:]
    return _forward(self, hidden_states, text, timestep, **more)


def _with_memory(
    self: Any, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, **more: Any
) -> Any:
    """What the call before has left goes into this one, as caches of steps do."""
    before = getattr(self, "_before", 0.0)
    object.__setattr__(self, "_before", float(hidden_states.mean()))
    return _forward(self, hidden_states + before, encoder_hidden_states, timestep, **more)


def _alone_only(self: Any, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, **more: Any) -> Any:
    if len(hidden_states) > 2:
        raise ValueError("one request at a time")
    return _forward(self, hidden_states, encoder_hidden_states, timestep, **more)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (_with_company, "a picture drawn in company is"),
        (_with_memory, "the model keeps something between calls"),
        (_alone_only, "a call"),
    ],
)
def test_what_is_not_proven_is_not_joined(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forward: Any, why: str
) -> None:
    """Each is still drawn, as the pipeline alone draws it."""
    monkeypatch.setattr(AuraFlowTransformer2DModel, "forward", forward)
    registry = registry_of(folder)
    model = registry.get("tiny")

    assert (model.joins, registry.joins("tiny")) == (False, False)
    assert why in model.probed
    room = Studio(registry)
    ended = room.draw(*TASKS)
    assert all(isinstance(one, Drawn) for one in ended.values())
    assert room.engine.counters.unet_calls == 9


def test_a_table_that_knows_the_denoiser_is_believed_after_a_proof(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the table says wrongly is found out."""
    right, wrong = DENOISERS["PixArtTransformer2DModel"], DENOISERS["FluxTransformer2DModel"]
    monkeypatch.setitem(DENOISERS, "AuraFlowTransformer2DModel", right)  # type: ignore[index]
    assert registry_of(folder).get("tiny").joins
    spoilt = type(wrong)(shared=frozenset({"encoder_hidden_states", "hidden_states"}))
    monkeypatch.setitem(DENOISERS, "AuraFlowTransformer2DModel", spoilt)  # type: ignore[index]
    assert not registry_of(folder).get("tiny").joins


def test_a_probe_that_takes_too_long_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", -1.0)
    model = registry_of(folder).get("tiny")

    assert not model.joins
    assert "the probe took more than" in model.probed


def test_a_model_that_is_loaded_again_is_not_probed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(folder)
    first = registry.get("tiny")
    registry._loaded.clear()
    monkeypatch.setattr(probe, "SECONDS", -1.0)  # a second probe would fail
    again = registry.get("tiny")

    assert again is not first
    assert (again.joins, draw(registry)[0]) == (True, 4)


def test_a_model_that_the_tables_know_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", -1.0)
    model = registry_of(save("pixart", tmp_path / "model")).get("tiny")

    assert (model.joins, model.probed) == (True, "")
