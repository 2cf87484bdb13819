"""Model cards: what a folder's own files say, and what an operator says instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.models.cards import BUILT_IN, POPULAR, Cards, ModelCard, state_of
from infra.models.families import FAMILIES
from infra.models.model_files import ModelUnavailable, find
from schemas.errors import Rejected

UNET = {"sample_size": 64}
VAE = {"block_out_channels": [1, 2, 3, 4]}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def folder(
    place: Path,
    *,
    index: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> Path:
    """The JSON files of a diffusers folder, by default those of a Stable Diffusion 1 with Euler."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"} | (index or {}),
        "unet/config.json": UNET | (unet or {}),
        "vae/config.json": VAE | (vae or {}),
        "scheduler/scheduler_config.json": EULER | (scheduler or {}),
    }
    for name, document in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(document))
    return place


def card(text: str) -> ModelCard:
    return Cards.of([f"mine={text}"]).get("mine")


def numbers(card: ModelCard) -> tuple[int, float]:
    return card.steps, card.cfg_scale


def test_the_documented_numbers_are_those_of_every_model_but_doodle():
    """Cards change them only where they are wrong."""
    assert {c.name: numbers(c) for c in BUILT_IN} == {
        "doodle": (20, 4),
        "sd21": (30, 7),
        "sd15": (30, 7),
        "sdxl": (30, 7),
    }


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("plain", {}, (30, 7)),
        ("turbo", {"scheduler": {"timestep_spacing": "trailing"}}, (4, 0)),
        ("sdxl-Turbo-1.0", {"scheduler": {"timestep_spacing": "trailing"}}, (4, 0)),
        ("xl_lightning", {"scheduler": {"timestep_spacing": "trailing"}}, (4, 0)),
        (
            "x",
            {"scheduler": {"timestep_spacing": "trailing"}, "unet": {"_name_or_path": "a/sd-turbo"}},
            (4, 0),
        ),
        ("turbo", {}, (30, 7)),
        ("plain", {"scheduler": {"timestep_spacing": "trailing"}}, (30, 7)),
        ("turbofan-photos", {"scheduler": {"timestep_spacing": "trailing"}}, (30, 7)),
        ("plain", {"scheduler": {"_class_name": "LCMScheduler"}}, (4, 0)),
        ("plain", {"scheduler": {"_class_name": "TCDScheduler"}}, (4, 0)),
        ("plain", {"unet": {"time_cond_proj_dim": 256}}, (4, 7)),
        ("plain", {"index": {"is_distilled": True}}, (4, 0)),
        ("plain", {"index": {"is_distilled": False}}, (30, 7)),
    ],
)
def test_a_folder_says_whether_it_is_distilled(
    tmp_path: Path, name: str, files: dict[str, Any], expected: tuple[int, float]
):
    """By its own configs; a name alone changes nothing, as long as the configs are there."""
    assert numbers(card(str(folder(tmp_path / name, **files)))) == expected


def test_a_folder_says_its_size_its_multiple_and_its_sampler(tmp_path: Path):
    """A VAE with six levels has cells of 32 pixels."""
    deep = folder(tmp_path / "deep", unet={"sample_size": [32, 24]}, vae={"block_out_channels": [1] * 6})
    found = card(str(deep))
    assert (found.native_width, found.native_height, found.size_multiple) == (768, 1024, 32)
    assert found.scheduler == "Euler"


def test_a_hub_model_is_read_where_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before that, its name alone tells."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert numbers(card("hub:somebody/sd-turbo")) == (4, 0)
    assert numbers(card("hub:somebody/model@abc")) == (30, 7)
    snapshots = tmp_path / "models--somebody--model" / "snapshots"
    folder(snapshots / "abc", unet={"sample_size": 128}, scheduler={"_class_name": "LCMScheduler"})
    found = card("hub:somebody/model@abc")
    assert (found.native_width, found.scheduler, *numbers(found)) == (1024, "LCM", 4, 0)
    assert (found.sources, found.revision) == (("hub:somebody/model",), "abc")


def test_the_operator_has_the_last_word(tmp_path: Path):
    """Options may stand behind any source, and a folder's name may have a comma."""
    place = folder(tmp_path / "a,b")
    found = card(f"{place},steps=9,cfg=0,scheduler=euler_a,size=512x768,multiple=16")
    assert found.sources == (str(place),)
    assert (found.steps, found.cfg_scale, found.scheduler) == (9, 0, "Euler a")
    assert (found.native_width, found.native_height, found.size_multiple) == (512, 768, 16)
    assert card("hub:somebody/model@abc,size=1024").native_height == 1024
    doodle = Cards.of([f"doodle={place},steps=25"]).get("doodle")
    assert (doodle.steps, doodle.cfg_scale, doodle.native_width) == (25, 4, 128)
    assert [own.name for own in Cards.of([f"doodle={place},steps=25"]).own()] == ["doodle"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("stepz=9", "'stepz' is no option; known are steps, cfg, scheduler, size, multiple"),
        ("steps=0", "steps is '0'; it should be a whole number, 1 or more"),
        ("steps=" + "9" * 5000, "it should be a whole number, 1 or more"),
        ("steps=", "steps is ''; it should be a whole number, 1 or more"),
        ("cfg=-1", "cfg is '-1'; it should be a number, 0 or more; 1 or below is without guidance"),
        ("cfg=nan", "cfg is 'nan'; it should be a number"),
        (
            "scheduler=Oiler",
            "scheduler is 'Oiler'; it should be a scheduler's name (no scheduler named 'Oiler'",
        ),
        ("size=500", "size is '500'; it should be pixels in multiples of 8, such as 512 or 512x768"),
        ("size=512x", "size is '512x'; it should be pixels"),
        ("multiple=12", "multiple is '12'; it should be a multiple of 8 pixels"),
        ("size=520,multiple=16", "its size 520x520 is not in multiples of 16; give size= too"),
        ("steps=3,steps=4", "steps is given twice"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: str, message: str):
    """With the model, so that the worker's start says which setting is wrong."""
    with pytest.raises(Rejected) as refused:
        card(f"{folder(tmp_path / 'm')},{options}")
    assert refused.value.message.startswith("model 'mine': ")
    assert message in refused.value.message


def test_popular_models_are_known_by_name_and_give_way(tmp_path: Path):
    """Pinned, with licence, size and numbers; a folder of that name is read as any other, and no LoRA base changes."""
    cards = Cards.of()
    known = {card.name: card for card in POPULAR}
    assert {
        "flux-schnell",
        "flux-dev",
        "flux2-klein",
        "qwen-image",
        "z-image-turbo",
        "sd35-medium",
    } <= known.keys()
    assert known.keys() <= set(cards.known())
    for card in POPULAR:
        assert (len(card.revision), bool(card.licence), card.yields) == (40, True, True)
        assert 10e9 < card.memory_bytes < 60e9
        assert FAMILIES[card.family].pack * 8 <= card.size_multiple or card.size_multiple == 16
    assert numbers(cards.get("z-image-turbo")) == (9, 0)
    assert cards.get("flux-kontext").editor is not None
    own = Cards.of([f"z-image-turbo={folder(tmp_path / 'mine')}"]).get("z-image-turbo")
    assert (numbers(own), own.yields, own.sources) == ((30, 7), False, (str(tmp_path / "mine"),))
    assert Cards.of(popular=False).known() == ["doodle", "sd15", "sd21", "sdxl"]


def test_a_card_says_how_near_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cards = Cards.of([f"mine={folder(tmp_path / 'mine')}", "theirs=hub:some/body"])

    def state(name: str, *, offline: bool = False) -> tuple[str, int | None]:
        found = state_of(cards.get(name), offline=offline)
        return found.state, found.bytes

    assert state("mine", offline=True) == ("disk", None)
    assert state("theirs") == ("download", None)
    assert state("flux2-klein") == ("download", 15_960_000_000)
    assert state("flux2-klein", offline=True)[0] == state("flux-dev")[0] == "unreachable"
    assert "accepted its terms" in state_of(cards.get("flux-dev"), offline=True).why
    weights = (
        tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / cards.get("flux-dev").revision
    )
    (weights / "transformer").mkdir(parents=True)
    (weights / "transformer" / "model.safetensors").touch()
    assert state("flux-dev") == ("disk", None)


def test_a_gated_model_is_not_asked_for_at_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its answer would be no, after a while; what to do is said at once."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="accepted its terms: download it and give its folder"):
        find(Cards.of().get("flux-dev"), offline=False, cache=None)


def test_a_folder_of_another_family_cannot_have_a_built_in_name(tmp_path: Path):
    """It was drawn with the size, steps and guidance of the model whose name it took."""
    xl = folder(tmp_path / "xl", unet={"cross_attention_dim": 2048})
    with pytest.raises(
        Rejected, match="model 'sd21': the folder has a model of the family sdxl, and 'sd21' is of sd2"
    ):
        Cards.of([f"sd21={xl}"])
    assert Cards.of([f"sdxl={xl}"]).get("sdxl").native_width == 1024
