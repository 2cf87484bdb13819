"""Pictures of other programs: the `parameters` text, in PNG and in EXIF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infra.recipes import EXIF_IFD, USER_COMMENT
from producer.recipe import read_recipe
from schemas.manifest import validate_manifest

TEXT = (
    "a cat, asleep\nNegative prompt: dogs\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 6, Size: 64x32, Model: doodle, RNG: CPU"
)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_parameters_text_makes_the_request(tmp_path: Path, kind: str):
    """The text that A1111's web UI writes is read from a PNG chunk and from EXIF's UserComment."""
    path = tmp_path / f"a.{kind}"
    image = Image.new("RGB", (64, 32))
    if kind == "png":
        info = PngInfo()
        info.add_text("parameters", TEXT)
        image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + TEXT.encode("utf-16-be")
        image.save(path, exif=exif)
    found = read_recipe(path).manifest
    expected = {
        "prompt": "a cat, asleep",
        "negative_prompt": "dogs",
        "steps": 20,
        "cfg_scale": 7.5,
        "seed": 6,
    }
    assert {field: found[field] for field in expected} == expected
    assert (found["width"], found["height"]) == (64, 32)
    validate_manifest(found)


def test_a_strength_hints_at_a_picture(tmp_path: Path, dreamdrop: Callable[..., Any]):
    """The text does not say the task; where it holds a strength, the user is asked for the image."""
    info = PngInfo()
    info.add_text("parameters", TEXT + ", Denoising strength: 0.5")
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png", pnginfo=info)
    found = read_recipe(tmp_path / "a.png")
    assert found.manifest["strength"] == 0.5
    assert "--image" in found.notes[0]
    done = dreamdrop("replay", "a.png", "--image", "a.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert validate_manifest(json.loads(done.stdout)).task == "img2img"


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("Steps: 20, Sampler: Euler, CFG scale: nan, Seed: 5, Size: ²x²", {"cfg_scale", "width"}),
        ("Steps: ²⁰, Sampler: Euler, CFG scale: 1e999, Seed: 5, Size: 8x٨", {"steps", "cfg_scale", "width"}),
        (
            f"Steps: {'9' * 400}, Sampler: Euler, CFG scale: -inf, Seed: {'1' * 9000}",
            {"steps", "cfg_scale", "seed"},
        ),
        ("Steps: 1_000, Sampler: Euler, Seed: 0x10, Clip skip: ٣", {"steps", "seed", "clip_skip"}),
        ('Steps: 20, Sampler: Euler, Seed: 5, Model: "\\ud800"', set()),
        ('Steps: 20, Sampler: "' + "[" * 90_000 + '", Seed: 5', set()),
    ],
    ids=["superscripts", "infinite", "digits", "python", "surrogate", "deep"],
)
def test_hostile_text_leaves_out_what_is_no_number(
    tmp_path: Path, dreamdrop: Callable[..., Any], text: str, left_out: set[str]
):
    """What another program wrote otherwise is not guessed; what is printed can be sent as it is."""
    info = PngInfo()
    info.add_text("parameters", f"a cat\n{text}")
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png", pnginfo=info)
    done = dreamdrop("replay", "a.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompt"].startswith("a cat")
    assert not left_out & found.keys()
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    "recipe",
    ['{"prompt": "\\ud800"}', '{"prompt": "x", "steps": NaN}', "[" * 90_000, '{"seed": ' + "9" * 9000 + "}"],
)
def test_a_hostile_recipe_of_our_own_is_refused(tmp_path: Path, dreamdrop: Callable[..., Any], recipe: str):
    """In a sentence that names the file."""
    info = PngInfo()
    info.add_text("dreamdrop", recipe)
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png", pnginfo=info)
    done = dreamdrop("replay", "a.png")
    assert done.returncode != 0
    assert "is damaged" in done.stderr
    assert "Traceback" not in done.stderr
