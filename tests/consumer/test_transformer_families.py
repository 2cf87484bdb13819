"""Requests to transformers and to LCM meet in shared calls and are drawn as alone; what must not go unnoticed does not.

The models are genuine diffusers pipelines with random weights, see `tests/tiny/families.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

from consumer.engine.denoisers import DENOISERS
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, ImageTask
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import FAMILIES, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from consumer.engine.loading.registry import LoadedModel
    from consumer.renderer.protocol import RawPicture

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # in Chroma

TOLERANCE = 1  # grey level, between an image drawn in company and alone
PROMPTS = ("a red fox", "a long and winding road to a small green house", "cat")
ALL = ("text2img", "img2img", "inpainting")
#: Family: (what it does, calls of its denoiser for the requests of `scene`, of 2, 3 and 4 steps).
DOES = {
    "flux": (ALL, 4),
    "schnell": (ALL, 4),
    "sd3": (ALL, 4),
    "z_image": (ALL, 4),
    "qwen_image": (ALL, 8),  # with and without the prompt, one after the other
    "pixart": (ALL[:1], 4),
    "sana": (ALL[:1], 4),
    "lumina2": (ALL[:1], 8),
    "chroma": (ALL[:2], 8),
    "klein": (ALL[:2], 8),  # its edits: tests/consumer/test_edit_models.py
    "lcm": (ALL[:2], 4),
}
MASKED = {"qwen_image": "encoder_hidden_states_mask", "pixart": "encoder_attention_mask"}
MASKED |= {"sana": "encoder_attention_mask", "lumina2": "encoder_attention_mask", "chroma": "attention_mask"}
#: Layers that are read of a language model's hidden states.
READ = {"z_image": {1}, "qwen_image": {1}, "lumina2": {1}, "klein": {3}}


@dataclass
class Scene:
    """A family's model, tasks that differ in everything, and how each is drawn alone."""

    name: str
    registry: ModelRegistry
    tasks: list[ImageTask]
    alone: dict[str, RawPicture]

    @property
    def model(self) -> LoadedModel:
        return self.registry.get("tiny")

    @property
    def denoiser(self) -> Any:
        pipe = self.model.plain["text2img"]
        return pipe.components.get("transformer") or pipe.unet

    def draw(self, tasks: list[ImageTask], **settings: Any) -> tuple[Studio, dict[str, Drawn]]:
        """Draw tasks together."""
        room = Studio(self.registry, **{"max_rows": 32, **settings})
        ended = {request: event for (request, _), event in room.draw(*tasks).items()}
        assert all(isinstance(event, Drawn) for event in ended.values()), ended
        return room, ended

    def apart(self, ended: dict[str, Drawn]) -> int:
        """The greatest difference of any picture from the one that was drawn alone."""
        return max(grey_levels_apart(event.picture, self.alone[name]) for name, event in ended.items())


@pytest.fixture(scope="module", params=FAMILIES)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = save(request.param, tmp_path_factory.mktemp(request.param) / "model")
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]))
    model = registry.get("tiny")
    tasks = [
        make_task(
            f"{kind}{i}",
            task=kind,
            prompt=PROMPTS[i],
            negative_prompt="ugly" if i == 1 else None,
            seed=i + 1,
            steps=2 + i,
            cfg_scale=(1, 4, 2.5)[i],
            scheduler=model.card.scheduler,
        )
        for kind in (model.plain if request.param != "klein" else ALL[:1])
        for i in (range(3) if kind == "text2img" else (2,))
    ]
    alone = {task.request: draw_alone(registry, task) for task in tasks}
    return Scene(request.param, registry, tasks, alone)


@pytest.fixture
def tampered(scene: Scene) -> Any:
    """Change what the denoiser is given, or what it answers, for one test."""
    real, undo = scene.denoiser.forward, []

    def tamper(
        change: Callable[[dict[str, Any]], dict[str, Any]], answer: Callable[[Any], Any] = lambda a: a
    ) -> None:
        scene.denoiser.forward = lambda **given: answer(real(**change(given)))
        undo.append(True)

    yield tamper
    if undo:
        del scene.denoiser.forward


def test_company_does_not_change_a_picture(scene: Scene) -> None:
    """Steps, guidance, seeds, prompts of other lengths and tasks differ; they share every call that they can."""
    tasks, calls = DOES[scene.name]
    room, ended = scene.draw(scene.tasks)

    assert tuple(scene.model.plain) == tasks
    assert scene.apart(ended) <= TOLERANCE
    assert room.engine.counters.unet_calls == calls
    assert room.engine.counters.splits == 0


def test_in_exact_mode_company_changes_no_byte(scene: Scene) -> None:
    """Calls are padded to one size, and text to one length where company would change it."""
    one, *others = scene.tasks
    _, alone = scene.draw([one], exact=True, max_rows=8)
    _, together = scene.draw([*others[:2], one], exact=True, max_rows=8)

    assert alone[one.request].picture == together[one.request].picture


def test_swapped_times_are_seen(scene: Scene, tampered: Any) -> None:
    """The proof above is worth something: each row depends on its own timestep."""
    name = "t" if scene.name == "z_image" else "timestep"
    tampered(lambda given: {**given, name: given[name].roll(1)})
    assert scene.apart(scene.draw(scene.tasks[:3])[1]) > TOLERANCE


def test_swapped_rows_are_seen(scene: Scene, tampered: Any) -> None:
    """And each gets its own answer back."""
    tampered(dict, lambda answer: (_rolled(answer[0]), *answer[1:]))
    assert scene.apart(scene.draw(scene.tasks[:3])[1]) > TOLERANCE


def test_a_swapped_prompt_is_seen(scene: Scene, tampered: Any) -> None:
    """And each is drawn by its own words."""
    name = "cap_feats" if scene.name == "z_image" else "encoder_hidden_states"
    tampered(lambda given: {**given, name: _rolled(given[name])})
    assert scene.apart(scene.draw(scene.tasks[:3])[1]) > TOLERANCE


def test_a_mask_left_out_is_seen(scene: Scene, tampered: Any) -> None:
    """Where text is padded, the padding must not be read."""
    if scene.name not in MASKED:
        pytest.skip("no mask is passed: text has one length, or is a list")
    name = MASKED[scene.name]
    tampered(lambda given: {**given, name: torch.ones_like(given[name])} if name in given else given)
    assert scene.apart(scene.draw(scene.tasks[:3])[1]) > TOLERANCE


def test_progress_counts_the_samplers_steps(scene: Scene) -> None:
    """However many calls of the denoiser a step takes."""
    task = scene.tasks[2]
    room = Studio(scene.registry, max_rows=32, progress_every=0.0)
    room.draw(task)
    told = [event.steps[task.request, 0] for event in room.events if hasattr(event, "calls") and event.steps]

    assert max(told) == (task.steps, task.steps)
    assert {(done, task.steps) for done in range(1, task.steps + 1)} <= set(told)


def test_a_sampler_of_the_other_kind_is_replaced_with_a_warning(scene: Scene) -> None:
    """A plan may name one where the planning worker did not have the model; drawn with it, nothing would be seen."""
    own = scene.tasks[0]
    other = "DPM++ 2M" if own.scheduler == "Flow Euler" else "Flow Euler"
    (ended,) = scene.draw([msgspec.structs.replace(own, scheduler=other)])[1].values()

    assert grey_levels_apart(ended.picture, scene.alone[own.request]) <= TOLERANCE
    assert f"scheduler {other} was not used" in dict(ended.warnings)["scheduler_replaced"]


def test_of_a_text_encoder_only_what_is_read_is_kept(scene: Scene) -> None:
    """All hidden states of a large one are more than the cache holds; so prompts were encoded again each time."""
    scene.registry.embeddings.forget()
    room, _ = scene.draw(scene.tasks[:3])
    first = room.engine.counters.text_calls
    room.draw(*scene.tasks[:3])
    kept = [answer.get("hidden_states") for answer, _ in scene.registry.embeddings._kept.values()]
    layers = [sum(state is not None for state in states) for states in kept if states is not None]

    assert room.engine.counters.text_calls == first
    assert set(layers) == READ.get(scene.name, set(layers))


@pytest.mark.parametrize("exact", [False, True])
def test_a_denoiser_that_no_line_knows_is_called_as_its_pipeline_calls_it(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments are not touched, and no two images share a call."""
    monkeypatch.delitem(DENOISERS, "PixArtTransformer2DModel")  # type: ignore[arg-type]
    registry = ModelRegistry(Cards.of([f"tiny={save('pixart', tmp_path / 'model')}"]))
    tasks = [make_task(f"r{i}", seed=i, steps=2 + i, scheduler="DPM++ 2M") for i in range(2)]
    room = Studio(registry, exact=exact)
    ended = room.draw(*tasks)

    pictures = [(ended[t.request, 0].picture, draw_alone(registry, t)) for t in tasks]
    assert all(grey_levels_apart(*pair) <= TOLERANCE for pair in pictures)  # texts and decoding are joined
    assert room.engine.counters.unet_calls == 5


def _rolled(value: Any) -> Any:
    return [*value[1:], value[0]] if isinstance(value, list) else value.roll(1, 0)
