"""From a picture back to its request."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producer.recipe import read_recipe
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.text.prompts import is_weighted, plain

Cli = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = {
    "task": "text2img",
    "prompt": 'a cat, asleep: "mine"',
    "negative_prompt": "dogs",
    "width": 64,
    "height": 32,
    "steps": 20,
    "cfg_scale": 7.5,
    "scheduler": "DDIM",
    "seed": 6,
    "model": "doodle",
    "model_revision": "abc",
    "strength": None,
    "loras": [],
}


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.new("RGB", (64, 32)).save(path, pnginfo=info)
    return path


def test_our_own_chunk_makes_the_request(tmp_path: Path):
    """Every field that a request has comes back; what is left out is not a field of a manifest."""
    found = read_recipe(picture(tmp_path / "a.png", dreamdrop=json.dumps(RECIPE)))
    expected = {k: v for k, v in RECIPE.items() if k not in ("model_revision", "strength", "loras")}
    assert found.manifest == expected
    assert found.notes == []
    validate_manifest(found.manifest)


def test_what_a_picture_started_from_must_be_given(tmp_path: Path, dreamdrop: Cli):
    """The recipe of an img2img picture says so; with --image the request is whole."""
    path = picture(tmp_path / "a.png", dreamdrop=json.dumps(RECIPE | {"task": "img2img", "strength": 0.5}))
    assert "give it with --image" in read_recipe(path).notes[0]
    assert "give it with --image" in dreamdrop("replay", "a.png").stderr
    done = dreamdrop("replay", "a.png", "--image", "a.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert validate_manifest(json.loads(done.stdout)).task == "img2img"


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        ({}, "holds no recipe"),
        ({"dreamdrop": "{"}, "is damaged; it is not JSON"),
        ({"dreamdrop": "[]"}, "is damaged; it is not a JSON object"),
        ({"dreamdrop": "[" * 100_000}, "is damaged; it is not JSON"),
        ({"dreamdrop": '{"cfg_scale": NaN}'}, "is damaged; cfg_scale is not a finite number"),
        ({"dreamdrop": '{"steps": 1e999}'}, "is damaged; steps is not a finite number"),
    ],
)
def test_a_picture_without_a_recipe_says_so(tmp_path: Path, texts: dict[str, str], text: str):
    """Nothing is guessed."""
    with pytest.raises(Rejected, match=text):
        read_recipe(picture(tmp_path / "a.png", **texts))


def test_what_is_no_picture_says_so(tmp_path: Path):
    """Another file, half a file and no file."""
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(Rejected, match="not a picture"):
        read_recipe(tmp_path / "a.png")
    whole = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:-40])
    with pytest.raises(Rejected, match="cannot read the picture"):
        read_recipe(tmp_path / "b.png")
    with pytest.raises(Rejected, match="No such file"):
        read_recipe(tmp_path / "c.png")


@pytest.mark.parametrize(
    "pairs", ["Size: ²x²", "CFG scale: nan", f"Steps: {'9' * 5000}", "Seed: ²", "Clip skip: 1e9"]
)
def test_a_hostile_text_is_replayed_without_what_cannot_be_read(tmp_path: Path, dreamdrop: Cli, pairs: str):
    """`Size: ²x²` was a traceback."""
    path = picture(tmp_path / "a.png", parameters=f"a red circle\n{pairs}, Steps: 20, Model: m, Version: x")
    shown = dreamdrop("replay", str(path))
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout, parse_constant=pytest.fail)["prompt"] == "a red circle"


def test_what_guided_a_picture_must_be_given(tmp_path: Path):
    """A recipe has the names and numbers of its guides, not their pictures; without them it draws another one."""
    nets = [{"name": "canny", "scale": 0.5, "start": 0.0, "end": 1.0}]
    recipe = RECIPE | {"controlnet": nets, "ip_adapter": {"name": "face", "scale": 0.6}}
    found = read_recipe(picture(tmp_path / "a.png", dreamdrop=json.dumps(recipe)))
    assert not {"controlnet", "ip_adapter"} & found.manifest.keys()
    assert [note.partition(" [")[0].partition(" {")[0] for note in found.notes] == [
        "it was drawn with controlnet",
        "it was drawn with ip_adapter",
    ]
    assert '"name": "canny", "scale": 0.5' in found.notes[0]
    validate_manifest(found.manifest)


def test_what_was_drawn_as_words_is_drawn_as_words_again(tmp_path: Path):
    """Workers before weights drew every bracket; the recipes of later ones say that a prompt has weights."""
    marks = {"prompt": r"a (red:1.3) [fox] \(", "negative_prompt": "a ((cat))"}
    old = read_recipe(picture(tmp_path / "a.png", dreamdrop=json.dumps(RECIPE | marks))).manifest
    new = read_recipe(picture(tmp_path / "b.png", dreamdrop=json.dumps(RECIPE | marks | {"weights": True})))

    assert {name: plain(old[name]) for name in marks} == marks
    assert not any(is_weighted(old[name]) for name in marks)
    assert {name: new.manifest[name] for name in marks} == marks
    assert (
        read_recipe(picture(tmp_path / "c.png", dreamdrop=json.dumps(RECIPE))).manifest["prompt"]
        == RECIPE["prompt"]
    )
