"""LoRAs by their content: one file under two names, and one LoRA in two spellings."""

from __future__ import annotations

from consumer.renderer.protocol import Lora
from infra.models import lora_formats
from infra.models.lora_files import content_hash


def given(name, file, weight=1.0):
    """A LoRA that a task comes with, as a published one does."""
    return Lora(name, weight, content_hash(file), str(file))


def test_one_file_under_two_names_acts_with_both_weights(make_registry, lora_file, task, alone, apart):
    """It is loaded once, and the weights add up."""
    registry = make_registry()
    two = alone(registry, task("two", loras=(given("ink", lora_file, 0.5), given("pen", lora_file, 0.25))))
    one = alone(registry, task("one", loras=(given("ink", lora_file, 0.75),)))
    bare = alone(registry, task("bare"))
    assert apart(two, one) <= 1
    assert apart(two, bare) > 1
    assert registry.get("tiny").adapters.loaded() == ["ink"]


def test_two_contents_of_one_name_are_two_loras(
    make_registry, lora_file, studio, task, alone, apart, tmp_path
):
    """As two versions of a published one: neither layers nor remembered texts of the other are used."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other.safetensors"
    save_file(
        {name: -tensor for name, tensor in load_file(lora_file).items() if "text_encoder" in name}, other
    )
    room = studio(make_registry())
    first = room.draw(task("first", loras=(given("ink", lora_file),)))["first", 0].picture
    second = room.draw(task("second", loras=(given("ink", other),)))["second", 0].picture
    fresh = make_registry()
    assert apart(second, alone(fresh, task("second", loras=(given("ink", other),)))) <= 1
    assert apart(first, second) > 1


def test_a_lora_that_comes_with_its_task_is_drawn(make_registry, lora_file, studio, task, apart):
    """No setting names it; a registered one with the same content is the same."""
    room = studio(make_registry(loras={"style": lora_file}))
    ended = room.draw(
        task("given", loras=(given("ink", lora_file),)), task("registered", loras=(Lora("style", 1.0),))
    )
    assert apart(ended["given", 0].picture, ended["registered", 0].picture) == 0


def test_a_model_that_comes_with_its_task_is_drawn(make_registry, tiny_folder, studio, task, apart):
    """Beside the one that the registry knows by itself, under name@version."""
    registry = make_registry()
    room = studio(registry)
    ended = room.draw(task("own"), task("given", model="dog@2", folder=str(tiny_folder)))
    assert apart(ended["own", 0].picture, ended["given", 0].picture) == 0
    assert ended["given", 0].model["revision"] == "2"
    assert registry.loaded() == ["tiny", "dog@2"]


def test_both_spellings_are_one_lora(make_registry, lora_file, studio, task, apart, tmp_path):
    """Written for Kohya's tools and back again: the same picture each time."""
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    lora_formats.convert(lora_file, kohya, "kohya")
    lora_formats.convert(kohya, back, "diffusers")
    room = studio(make_registry())
    files = {"first": lora_file, "kohya": kohya, "back": back}
    ended = room.draw(*(task(name, loras=(given(name, file),)) for name, file in files.items()), task("bare"))
    pictures = {name: ended[name, 0].picture for name in (*files, "bare")}
    assert apart(pictures["first"], pictures["kohya"]) <= 1
    assert apart(pictures["first"], pictures["back"]) <= 1
    assert apart(pictures["first"], pictures["bare"]) > 1


def test_a_weak_alpha_stays_weak(make_registry, lora_file, studio, task, apart, tmp_path):
    """Alpha 1 at rank 4, of diffusers' metadata, of Kohya's tensors, and folded into the numbers."""
    import json

    from safetensors.torch import load_file, save_file

    settings = {f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in _WEAK.items()}
    weak = tmp_path / "weak.safetensors"
    metadata = {"format": "pt", lora_formats.METADATA: json.dumps(settings)}
    save_file(load_file(lora_file), weak, metadata=metadata)
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    lora_formats.convert(weak, kohya, "kohya")
    lora_formats.convert(kohya, back, "diffusers")
    room = studio(make_registry())
    quarter = task("quarter", loras=(given("first", lora_file, 0.25),))
    ended = room.draw(quarter, *(task(f.stem, loras=(given(f.stem, f),)) for f in (kohya, back)))
    for name in ("kohya", "back"):
        assert apart(ended["quarter", 0].picture, ended[name, 0].picture) <= 1


_WEAK = {"r": 4, "lora_alpha": 1}
