"""Requests with ControlNets meet in shared calls of the ControlNet and of the UNet, and are drawn as alone."""

from __future__ import annotations

from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import pytest
import torch

from consumer.engine.loading import pipelines
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import (
    Control,
    Drawn,
    Enlarged,
    ImageTask,
    IpAdapterChoice,
    RawPicture,
    Undrawable,
)
from infra.models.addons.known import Addons
from infra.models.cards import Cards
from tests.studio import Studio, grey_levels_apart, make_task, save_tiny_sdxl
from tests.tiny.addons import picture, save_controlnet, save_ip_adapter
from tests.tiny.families import save

TASKS = ("text2img", "img2img", "inpainting")
CANNY, DEPTH = Control("canny", 1.0, 0.0, 1.0), Control("depth", 0.5, 0.0, 1.0)


def guided(request: str, *controls: Control, **fields: Any) -> ImageTask:
    pictures = {f"controlnet.{place}.image": picture(40 + place) for place in range(len(controls))}
    return make_task(request, controls=controls, pictures=pictures, **fields)


def draw_alone(registry: ModelRegistry, task: ImageTask) -> RawPicture:
    """Draw by diffusers' own ControlNet pipeline, with no engine near it."""
    model = registry.get(task.model)
    registry.equip(model, task, ())
    pipe = model.guides.around(model.plain[task.task], task, plain=True)
    return pipelines.draw(pipelines.prepare(pipe, task, model.scheduler_config), task)


BOTH = pytest.mark.parametrize("scene", ["sd", "sdxl"], indirect=True)


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registry with two ControlNets for its model."""
    kind = getattr(request, "param", "sd")
    folder = tmp_path_factory.mktemp(kind)
    model = tiny_folder if kind == "sd" else save_tiny_sdxl(folder / "model", tiny_folder)
    addons = Addons.of(
        f"{name}={save_controlnet(model, folder / name, seed)}"
        for seed, name in enumerate(("canny", "depth"))
    )
    return ModelRegistry(with_fields(Cards.of([f"tiny={model}"]), addons=addons))


@pytest.fixture(scope="module")
def tasks() -> list[ImageTask]:
    """They differ in steps, guidance, scale and end; one has two ControlNets, one none."""
    return [
        guided("a", CANNY, steps=3, cfg_scale=4.0, seed=1),
        guided("b", Control("canny", 0.4, 0.0, 0.5), steps=4, cfg_scale=1.0, seed=2, prompt="a long road"),
        guided("c", CANNY, DEPTH, steps=2, cfg_scale=7.0, seed=3),
        make_task("plain", steps=4, seed=4),
    ]


def drawn(room: Studio, tasks: list[ImageTask]) -> dict[str, RawPicture]:
    ended = {request: event for (request, _), event in room.draw(*tasks).items()}
    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    return {request: event.picture for request, event in ended.items()}


@BOTH
def test_company_does_not_change_a_picture(scene: ModelRegistry, tasks: list[ImageTask]) -> None:
    """Different scales share calls; after its end a ControlNet is not called, and the rows go with the plain ones."""
    room = Studio(scene, max_rows=16)
    pictures = drawn(room, tasks)
    apart = {
        task.request: grey_levels_apart(pictures[task.request], draw_alone(scene, task)) for task in tasks
    }
    assert max(apart.values()) <= 1, apart
    counters = room.engine.counters
    assert (counters.side_calls, counters.side_rows) == (5, 16)  # alone: 9 calls
    assert (counters.unet_calls, counters.splits) == (7, 0)  # alone: 13


@BOTH
@pytest.mark.parametrize("kind", TASKS)
def test_each_task_can_be_guided(scene: ModelRegistry, kind: str) -> None:
    """By two ControlNets at once; each of them changes the picture."""
    both, one, none = (
        guided(name, *controls, task=kind, steps=3)
        for name, controls in (("b", (CANNY, DEPTH)), ("o", (CANNY,)), ("n", ()))
    )
    pictures = drawn(Studio(scene, max_rows=16), [both, one, none])
    assert grey_levels_apart(pictures["b"], draw_alone(scene, both)) <= 1
    assert grey_levels_apart(pictures["b"], pictures["o"]) > 5
    assert grey_levels_apart(pictures["o"], pictures["n"]) > 5


def test_in_exact_mode_company_changes_no_byte(scene: ModelRegistry, tasks: list[ImageTask]) -> None:
    """Calls of ControlNets are padded, too."""
    alone = drawn(Studio(scene, exact=True), tasks[1:2])
    together = drawn(Studio(scene, exact=True), [tasks[0], tasks[2], tasks[1]])
    assert alone["b"] == together["b"]


@pytest.mark.parametrize("swap", ["rows", "nothing added"])
def test_what_a_controlnet_adds_is_seen(scene: ModelRegistry, tasks: list[ImageTask], swap: str) -> None:
    """The proof above is worth something: each row gets its own residuals."""
    model = scene.get("tiny")
    scene.equip(model, tasks[0], ())
    net = model.guides.controlnets._loaded["canny"]
    real = net.forward

    def forward(*args: Any, **given: Any) -> Any:
        down, mid = real(*args, **given)
        change = torch.zeros_like if swap != "rows" else (lambda level: level.roll(1, 0))
        return [change(level) for level in down], change(mid)

    expected = {task.request: draw_alone(scene, task) for task in tasks[:2]}
    net.forward = forward
    try:
        pictures = drawn(Studio(scene, max_rows=16), tasks[:2])
    finally:
        del net.forward
    assert max(grey_levels_apart(pictures[name], expected[name]) for name in expected) > 1


def test_progress_counts_the_samplers_steps(scene: ModelRegistry, tasks: list[ImageTask]) -> None:
    """However many modules are asked at a step."""
    room = Studio(scene, progress_every=0.0)
    drawn(room, tasks[:1])
    told = [event.steps["a", 0] for event in room.events if hasattr(event, "calls") and event.steps]
    assert {(1, 3), (2, 3), (3, 3)} <= set(told) <= {(0, 3), (1, 3), (2, 3), (3, 3)}


def test_an_unknown_controlnet_is_refused_with_the_known(scene: ModelRegistry) -> None:
    """A plan may come from a worker that knows more."""
    event = Studio(scene).draw(guided("x", CANNY, Control("pose", 1, 0, 1)))["x", 0]
    assert isinstance(event, Undrawable)
    assert (event.code, event.field, event.retry) == ("unknown_model", "controlnet.1.name", False)
    assert "known are canny, depth" in event.message


def test_one_of_another_family_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Before a tensor is multiplied; the next request is drawn."""
    other = save_controlnet(tiny_folder, tmp_path / "wide", cross_attention_dim=48)
    registry = ModelRegistry(
        with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=Addons.of([f"wide={other}"]))
    )
    ended = Studio(registry).draw(guided("x", Control("wide", 1, 0, 1)), make_task("y"))
    refused = ended["x", 0]
    assert (refused.code, refused.field, refused.retry) == ("unsupported", "controlnet.0.name", False)
    assert "its cross_attention_dim is 48, the model's 32" in refused.message
    assert isinstance(ended["y", 0], Drawn)


def test_the_memory_budget_counts_controlnets(tiny_folder: Path, tmp_path: Path) -> None:
    """One waits until a model in use can go for it; one that can never fit is refused."""
    addons = Addons.of([f"canny={save_controlnet(tiny_folder, tmp_path / 'canny')}"])
    cards = with_fields(Cards.of([f"tiny={tiny_folder}", f"second={tiny_folder}"]), addons=addons)
    task = guided("a", CANNY, steps=1)
    model = ModelRegistry(cards).get("tiny")
    size, needed = model.bytes, model.guides.needed(task)
    assert needed > 0

    tight = ModelRegistry(cards, memory_budget=2 * size + needed - 1)
    room = Studio(tight)
    room.draw(make_task("t", steps=1))
    room.draw(make_task("s", model="second", steps=4), task)
    assert [event.request for event in room.events if isinstance(event, Drawn)] == ["t", "s", "a"]
    assert tight.loaded() == ["tiny"]
    assert tight.get("tiny").bytes == size + needed

    refused = Studio(ModelRegistry(cards, memory_budget=size + needed - 1)).draw(task)["a", 0]
    assert (refused.code, refused.retry) == ("model_unavailable", False)
    assert f"needs {size + needed:,} bytes" in refused.message


def test_a_family_without_guides_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    """Where diffusers has no pipeline for it; without them it draws."""
    addons = Addons.of(
        [f"canny={save_controlnet(tiny_folder, tmp_path / 'canny')}"],
        [f"face={save_ip_adapter(tiny_folder, tmp_path / 'face')}"],
    )
    registry = ModelRegistry(
        with_fields(Cards.of([f"tiny={save('pixart', tmp_path / 'pixart')}"]), addons=addons)
    )
    fields: dict[str, Any] = {"steps": 1, "scheduler": "DPM++ 2M"}
    looks = make_task(
        "face", ip_adapter=IpAdapterChoice("face", 1), pictures={"ip_adapter.image": picture(1)}, **fields
    )
    ended = Studio(registry).draw(guided("net", CANNY, **fields), looks, make_task("plain", **fields))
    for name, field in (("net", "controlnet"), ("face", "ip_adapter")):
        assert (ended[name, 0].code, ended[name, 0].field) == ("unsupported", field)
        assert "a model of PixArt-Sigma; leave it out" in ended[name, 0].message
    assert isinstance(ended["plain", 0], Drawn)


def test_one_that_acts_at_no_step_is_told(scene: ModelRegistry) -> None:
    """With few steps a short part of them may hold none; then it is drawn as without."""
    never = guided("never", Control("canny", 1.0, 0.6, 0.9), steps=2)
    ended = Studio(scene).draw(never, guided("acts", CANNY, steps=2), make_task("plain", steps=2))
    ((code, text),) = ended["never", 0].warnings
    assert (code, ended["acts", 0].warnings) == ("ignored", ())
    assert "controlnet.0 (canny) has no effect: from 0.6 to 0.9" in text
    assert grey_levels_apart(ended["never", 0].picture, ended["plain", 0].picture) <= 1


def test_one_that_looks_at_the_whole_picture_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    """Its rows are those with the prompt only, and it gives numbers at every step."""
    net = save_controlnet(tiny_folder, tmp_path / "shuffle", global_pool_conditions=True)
    registry = ModelRegistry(
        with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=Addons.of([f"shuffle={net}"]))
    )
    tasks = [guided(str(end), Control("shuffle", 0.8, 0.0, end), steps=3, seed=7) for end in (0.4, 1.0)]
    pictures = drawn(Studio(registry), tasks)
    assert max(grey_levels_apart(pictures[task.request], draw_alone(registry, task)) for task in tasks) <= 1
    assert grey_levels_apart(pictures["0.4"], pictures["1.0"]) > 1


def test_both_passes_of_an_upscale_are_guided(scene: ModelRegistry) -> None:
    """At three steps, and at the one of two that is drawn at a strength of a half."""
    room = Studio(scene)
    upscale = Enlarged(64, 64, steps=2, strength=0.5)
    pictures = drawn(room, [guided("a", CANNY, upscale=upscale), make_task("plain", upscale=upscale)])
    assert (room.engine.counters.side_calls, pictures["a"].width) == (3 + 1, 64)
    assert grey_levels_apart(pictures["a"], pictures["plain"]) > 5


def test_weights_in_eight_bits_are_guided_in_the_precision_that_computes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A ControlNet in that of the kept weights could not be multiplied."""
    addons = Addons.of(
        [f"canny={save_controlnet(tiny_folder, tmp_path / 'canny')}"],
        [f"face={save_ip_adapter(tiny_folder, tmp_path / 'face')}"],
    )
    cards = with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=addons)
    registry = ModelRegistry(cards, quantize="fp8", dtype="bfloat16")
    task = guided("a", CANNY, steps=1, ip_adapter=IpAdapterChoice("face", 1))
    task.pictures["ip_adapter.image"] = picture(1)
    drawn(Studio(registry), [task])
    assert registry.get("tiny").guides.controlnets._loaded["canny"].dtype == torch.bfloat16
