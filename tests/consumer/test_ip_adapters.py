"""Requests with IP-Adapters share calls, are drawn as diffusers draws them, and change nothing for anybody else."""

from __future__ import annotations

from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from consumer.engine.loading import pipelines, spelling
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Control, Drawn, ImageTask, IpAdapterChoice, Lora, RawPicture
from infra.models.addons.known import Addons
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.addons import picture, save_controlnet, save_ip_adapter


def following(request: str, scale: float, seen: int = 50, name: str = "face", **fields: Any) -> ImageTask:
    pictures = {"ip_adapter.image": picture(seen, 40, 24)} | fields.pop("pictures", {})
    return make_task(request, ip_adapter=IpAdapterChoice(name, scale), pictures=pictures, **fields)


@pytest.fixture(scope="module")
def files(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_ip_adapter(
        tiny_folder, tmp_path_factory.mktemp("ip") / "face", plus=getattr(request, "param", "") == "plus"
    )


@pytest.fixture
def registry(files: Path, tiny_folder: Path) -> ModelRegistry:
    addons = Addons.of(ip_adapters=[f"face={files}"])
    return ModelRegistry(with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=addons))


def draw_by_diffusers(model: Path, files: Path, task: ImageTask) -> RawPicture:
    """By the methods that diffusers' documentation names, and nothing of ours but the noise."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(files.parent / "image_encoder")
    size = encoder.config.image_size
    pipe = StableDiffusionPipeline.from_pretrained(
        model,
        image_encoder=encoder,
        feature_extractor=CLIPImageProcessor(size=size, crop_size=size),
        safety_checker=None,
    )
    pipe.load_ip_adapter(str(files.parent), subfolder=None, weight_name=files.name, image_encoder_folder=None)
    assert task.ip_adapter is not None
    pipe.set_ip_adapter_scale(task.ip_adapter.scale)
    given = spelling.arguments(pipe, with_no_adapter(task))
    seen = spelling.to_pil(task.pictures["ip_adapter.image"])
    pixels = pipelines.to_bytes(pipe(**given, ip_adapter_image=seen).images[0])
    return RawPicture(pixels.shape[1], pixels.shape[0], 3, pixels.tobytes())


def with_no_adapter(task: ImageTask) -> ImageTask:
    return msgspec.structs.replace(task, ip_adapter=None)


def drawn(room: Studio, *tasks: ImageTask) -> dict[str, RawPicture]:
    ended = {request: event for (request, _), event in room.draw(*tasks).items()}
    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    return {request: event.picture for request, event in ended.items()}


@pytest.mark.parametrize("files", ["plain", "plus"], indirect=True)
def test_joined_as_diffusers_draws_it(registry: ModelRegistry, files: Path, tiny_folder: Path) -> None:
    """Rows with other pictures, steps and guidance share calls; another scale has calls of its own."""
    tasks = [
        following("a", 0.6, steps=3, cfg_scale=4.0, seed=1),
        following("b", 0.6, seen=51, steps=4, cfg_scale=1.0, seed=2),
        following("c", 1.0, steps=2, cfg_scale=7.0, seed=3),
    ]
    room = Studio(registry, max_rows=16)
    pictures = drawn(room, *tasks)
    apart = [grey_levels_apart(pictures[t.request], draw_by_diffusers(tiny_folder, files, t)) for t in tasks]
    assert max(apart) <= 1, apart
    assert room.engine.counters.unet_calls == 4 + 2
    kept = registry.embeddings._kept
    states = [answer.get("hidden_states") for answer, _ in kept.values() if "last_hidden_state" in answer]
    # Of 33 layers one is read.
    assert all(sum(state is not None for state in one) <= 1 for one in states if one)
    assert max(len(tokens) for _, tokens in kept) <= 32  # not the pixels
    unlike = draw_by_diffusers(
        tiny_folder, files, following("a", 0.6, seen=51, steps=3, cfg_scale=4.0, seed=1)
    )
    assert grey_levels_apart(pictures["a"], unlike) > 1  # the picture matters


def test_everybody_else_is_drawn_as_before(registry: ModelRegistry) -> None:
    """The same bytes as before it was loaded, alone and in its company; it is switched in and out."""
    plain = make_task("p", steps=3, seed=7)
    before = drawn(Studio(registry, exact=True), plain)["p"]
    pictures = drawn(Studio(registry, exact=True), following("a", 0.9, steps=4, seed=7), plain)
    assert pictures["p"] == before
    assert grey_levels_apart(pictures["a"], before) > 1
    unet = registry.get("tiny").plain["text2img"].unet
    drawn(Studio(registry), plain)
    assert unet.encoder_hid_proj is None
    assert {type(one).__name__ for one in unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_in_exact_mode_company_changes_no_byte(registry: ModelRegistry) -> None:
    one = following("a", 0.6, steps=3, seed=1)
    alone = drawn(Studio(registry, exact=True), one)["a"]
    others = following("b", 0.6, seen=51, steps=4, seed=2), following("c", 0.3, steps=2, seed=3)
    assert drawn(Studio(registry, exact=True), *others, one)["a"] == alone


def test_it_goes_together_with_loras_and_controlnets(
    files: Path, tiny_folder: Path, lora_file: Path, tmp_path: Path
) -> None:
    """Each changes the picture; a strength of 0 and nothing are the same."""
    net = save_controlnet(tiny_folder, tmp_path / "canny")
    addons = Addons.of([f"canny={net}"], [f"face={files}"])
    registry = ModelRegistry(
        with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=addons), loras={"ink": lora_file}
    )
    guide = {"controls": (Control("canny", 1, 0, 1),), "pictures": {"controlnet.0.image": picture(1)}}
    ink = {"loras": (Lora("ink", 1.0),)}
    pictures = drawn(
        Studio(registry),
        following("all", 0.8, **guide, **ink),
        following("no lora", 0.8, **guide),
        following("no guide", 0.8, **ink),
        following("no picture", 0.0, **guide, **ink),
        make_task("without", **guide, **ink),
        make_task("lora", **ink),
    )
    assert all(
        grey_levels_apart(pictures["all"], pictures[name]) > 1
        for name in ("no lora", "no guide", "no picture")
    )
    assert grey_levels_apart(pictures["no picture"], pictures["without"]) <= 1
    assert grey_levels_apart(pictures["lora"], draw_alone(registry, make_task("lora", **ink))) <= 1


def test_one_that_does_not_fit_is_refused_and_leaves_nothing(
    files: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Its width is told by its weights; one whose layers are others fails while it is loaded."""

    state = load_file(files)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "image_encoder").symlink_to(files.parent / "image_encoder")
    name = next(name for name in state if name.startswith("ip_adapter."))
    save_file({k: v for k, v in state.items() if k != name}, tmp_path / "short" / "a.safetensors")
    addons = Addons.of(ip_adapters=[f"face={files}", f"short={tmp_path / 'short'}"])
    registry = ModelRegistry(with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=addons))
    plain = make_task("p", seed=7)
    before = drawn(Studio(registry, exact=True), plain)["p"]

    refused = Studio(registry).draw(following("x", 1.0, name="short"))["x", 0]
    unknown = Studio(registry).draw(following("x", 1.0, name="hands"))["x", 0]
    assert (refused.code, refused.field, refused.retry) == ("unsupported", "ip_adapter.name", False)
    assert "does not fit this model" in refused.message
    assert (unknown.code, unknown.field) == ("unknown_model", "ip_adapter.name")
    assert "known are face, short" in unknown.message
    assert drawn(Studio(registry, exact=True), plain)["p"] == before


@pytest.mark.parametrize("kind", ["ip_adapter", "lora"])
def test_memory_that_ran_out_is_no_misfit(
    files: Path, tiny_folder: Path, lora_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The request is tried again, and drawn once there is room."""

    def short(*_args: Any, **_given: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    addons = Addons.of(ip_adapters=[f"face={files}"])
    cards = with_fields(Cards.of([f"tiny={tiny_folder}"]), addons=addons)
    registry = ModelRegistry(cards, loras={"ink": lora_file})
    pipe = registry.get("tiny").plain["text2img"]
    task = following("a", 1.0) if kind == "ip_adapter" else make_task("a", loras=(Lora("ink", 1.0),))
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.unet), "_load_ip_adapter_weights", short)
        patch.setattr(type(pipe), "load_lora_weights", short)
        failed = Studio(registry).draw(task)["a", 0]
    assert (failed.code, failed.retry) == ("out_of_memory", True)
    drawn(Studio(registry), task)
