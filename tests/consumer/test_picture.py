"""Pictures brought to a size that can be drawn, and pictures out: exact pixels, with the recipe inside."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consumer.jobs import picture
from consumer.jobs.picture import encode
from consumer.renderer.protocol import RawPicture
from infra.decoding.drawing import decode_image, fit, mask_notes
from producer.recipe import read_recipe
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest_parts import Output
from schemas.text import infotext

LIMITS = Limits()
RECIPE: dict[str, Any] = {
    "prompt": "a red circle, 赤い円",
    "steps": 20,
    "scheduler": "Euler",
    "cfg_scale": 7.5,
    "seed": 5,
    "width": 24,
    "height": 16,
    "model": "doodle",
}


def raw(width: int, height: int, channels: int = 3) -> RawPicture:
    return RawPicture(width, height, channels, bytes(i * 37 % 251 for i in range(width * height * channels)))


def image(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.frombytes(
        "L" if channels == 1 else "RGB", (width, height), raw(width, height, channels).data
    )


# Fitting -------------------------------------------------------------------------------------


def test_edges_are_cut_evenly_and_nothing_else_changes():
    """36 x 21 becomes 32 x 16: two columns go on each side, and each pixel left is as it was."""
    given_ = raw(36, 21)
    fitted, mask, notes = fit(image(36, 21), image(36, 21, 1), LIMITS)
    rows = [given_.data[(y * 36 + 2) * 3 : (y * 36 + 34) * 3] for y in range(2, 18)]
    assert (fitted.size, fitted.tobytes()) == ((32, 16), b"".join(rows))
    assert mask is not None
    assert (mask.width, mask.height) == (32, 16)
    assert [note.code for note in notes] == ["image_resized"]


def test_a_picture_that_fits_is_left_alone():
    """No note, the same bytes."""
    assert fit(image(32, 16), image(32, 16, 1), LIMITS) == (image(32, 16), image(32, 16, 1), [])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 130), st.integers(64, 9000))
def test_what_is_fitted_can_be_drawn(width: int, height: int, side: int, pixels: int):
    """Multiples of 8, within the limits, each change told; or a refusal, never less than 8 x 8."""
    limits = Limits(max_side=side, max_pixels=pixels)
    try:
        fitted, mask, notes = fit(image(width, height), image(8, 8, 1), limits)
    except Rejected:
        fitted = None
    if fitted is None:
        scale = min(1.0, side / max(width, height), (pixels / (width * height)) ** 0.5)
        assert min(width, height) * scale < 8
        return
    assert mask is not None
    assert (fitted.width % 8, fitted.height % 8) == (0, 0)
    assert max(fitted.width, fitted.height) <= side
    assert fitted.width * fitted.height <= pixels
    assert (mask.width, mask.height) == (fitted.width, fitted.height)
    assert ("image_resized" in [n.code for n in notes]) == ((width, height) != (fitted.width, fitted.height))


def test_a_mask_of_another_size_is_resized_and_told():
    """By the nearest pixel: what was black or white stays so."""
    _, mask, notes = fit(image(32, 16), Image.frombytes("L", (2, 1), b"\0\xff"), LIMITS)
    assert mask is not None
    assert mask.tobytes() == (b"\0" * 16 + b"\xff" * 16) * 16
    assert [(note.code, note.field) for note in notes] == [("mask_resized", "mask_image")]


# Out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["fpng", "pillow"])
@pytest.mark.parametrize("size", [(24, 16), (8, 8), (517, 3)])
def test_a_png_holds_the_exact_pixels_and_both_texts(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], fast: bool
):
    """By either encoder; Pillow reads the chunks, and checks their sums."""
    if fast and picture.fpng is None:
        pytest.skip("fpng is not installed on this platform")
    if not fast:
        monkeypatch.setattr(picture, "fpng", None)
    drawn = raw(*size)
    data, content_type, extension = encode(drawn, Output(), RECIPE)
    assert (content_type, extension) == ("image/png", "png")
    assert encode(drawn, Output(), RECIPE)[0] == data
    with Image.open(io.BytesIO(data)) as image:
        assert {"parameters", "dreamdrop"} <= set(image.info), (
            "before the pixels, as readers do not load them"
        )
        image.load()
        assert (image.size, image.tobytes()) == (size, drawn.data)
        assert image.info["parameters"].startswith("a red circle, 赤い円\nSteps: 20, ")
        assert '"seed": 5' in image.info["dreamdrop"]


def test_plain_letters_make_a_plain_chunk():
    """tEXt, which every reader knows, where Latin-1 holds the text; iTXt elsewhere."""
    data, _, _ = encode(raw(8, 8), Output(), RECIPE | {"prompt": "un café"})
    assert (data.count(b"tEXtparameters\0"), data.count(b"iTXt")) == (1, 0)
    assert b"iTXtparameters\0" in encode(raw(8, 8), Output(), RECIPE)[0]


@pytest.mark.parametrize(("kind", "extension"), [("jpeg", "jpg"), ("webp", "webp")])
@pytest.mark.parametrize("prompt", ["a red circle", "赤い円", "😀"])
def test_the_recipe_comes_back_from_jpeg_and_webp(tmp_path: Path, kind: str, extension: str, prompt: str):
    """What is replayed is what was drawn, in any script."""
    output = Output(format=kind, quality=95)  # type: ignore[arg-type]
    data, content_type, end = encode(raw(24, 16), output, RECIPE | {"prompt": prompt})
    assert (content_type, end) == (f"image/{kind}", extension)
    assert encode(raw(24, 16), output, RECIPE | {"prompt": prompt})[0] == data
    (tmp_path / "a").write_bytes(data)
    found = read_recipe(tmp_path / "a").manifest
    assert {k: found[k] for k in RECIPE} == RECIPE | {"prompt": prompt}


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_community_finds_its_text_where_it_looks(kind: str):
    """EXIF's UserComment holds the `parameters` text alone, whatever stands beside it."""
    data, _, _ = encode(raw(24, 16), Output(format=kind), RECIPE)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == infotext.write(RECIPE)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_every_format_gives_the_same_request_back(tmp_path: Path, kind: str):
    """Also what the community's text cannot say: which task it was, and how the image was written."""
    recipe = RECIPE | {"task": "inpainting", "strength": 0.5, "prompt": "赤い円"}
    for name in ("png", kind):
        output = Output(format=name)  # type: ignore[arg-type]
        (tmp_path / name).write_bytes(encode(raw(24, 16), output, recipe)[0])
    found = read_recipe(tmp_path / kind)
    assert found == read_recipe(tmp_path / "png")
    assert "--mask" in found.notes[0]


def test_quality_is_obeyed():
    """More of it makes larger files."""
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    drawn = RawPicture(64, 64, 3, noise.tobytes())
    for kind in ("jpeg", "webp"):
        low, high = (len(encode(drawn, Output(format=kind, quality=q), RECIPE)[0]) for q in (10, 95))
        assert low < high / 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_text_longer_than_exif_can_hold_does_not_lose_the_picture(kind: str):
    """A JPEG segment ends at 64 KB; the comment is cut, the picture is there."""
    long = {"prompt": "😀" * 20_000, "negative_prompt": "赤" * 50_000}
    output = Output(format=kind)  # type: ignore[arg-type]
    pixels, _, notes = decode_image(encode(raw(16, 8), output, RECIPE | long)[0], "image", LIMITS)
    assert (pixels.width, notes) == (16, [])


@pytest.mark.parametrize(
    ("white", "grey", "codes"),
    [(0, 0, ["empty_mask"]), (0, 200, ["empty_mask"]), (200, 0, []), (200, 60, []), (20, 200, ["grey_mask"])],
)
def test_a_mask_that_asks_for_nothing_or_in_grey_is_told(white: int, grey: int, codes: list[str]):
    """A black mask gave the same picture back without a word; a soft edge is no fault."""
    tone = 150 if white else 100
    mask = Image.frombytes("L", (32, 16), bytes([255] * white + [tone] * grey + [0] * (512 - white - grey)))
    assert [note.code for note in mask_notes(mask)] == codes


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_fields_have_the_types_of_the_standard(kind: str):
    """UserComment is UNDEFINED, and its text is in the block's byte order: piexif refuses anything else."""
    data, _, _ = encode(raw(24, 16), Output(format=kind), RECIPE)  # type: ignore[arg-type]
    block = data[data.index(b"MM\0*") :]
    length = len(b"UNICODE\0" + infotext.write(RECIPE).encode("utf-16-be"))
    assert struct.pack(">HHI", 0x9286, 7, length) in block


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a red circle", "a <b> & \"c\" 'd' 赤い円 \uffff", "赤い円 " * 1999])
def test_exiftool_finds_nothing_wrong(tmp_path: Path, kind: str, prompt: str):
    """Its validation passes; and what it writes anew still holds the recipe, the task included."""
    recipe = RECIPE | {"prompt": prompt, "negative_prompt": prompt, "task": "inpainting", "strength": 0.5}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encode(raw(24, 16), Output(format=kind), recipe)[0])  # type: ignore[arg-type]
    command = ["exiftool", "-validate", "-warning", "-error", "-a", "-s3", str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "OK\n"
    before = read_recipe(path)
    assert before.manifest["prompt"] == prompt
    subprocess.run(["exiftool", "-q", "-Artist=me", "-XMP-dc:Title=mine", str(path)], check=True)
    assert read_recipe(path) == before


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["😀&" * 4000, "&" * 8000])
def test_prompts_that_do_not_fit_are_cut_and_told(tmp_path: Path, kind: str, prompt: str):
    """The rest of the recipe stays, the task first of all."""
    recipe = RECIPE | {"prompt": prompt, "negative_prompt": prompt, "task": "img2img", "strength": 0.5}
    (tmp_path / "a").write_bytes(encode(raw(24, 16), Output(format=kind), recipe)[0])  # type: ignore[arg-type]
    found = read_recipe(tmp_path / "a")
    assert (found.manifest["task"], found.manifest["seed"]) == ("img2img", 5)
    assert prompt.startswith(found.manifest["prompt"])
    assert "too long" in found.notes[0]


def test_the_recipes_of_older_versions_are_read(tmp_path: Path):
    """They held our JSON in a MakerNote."""
    exif = Image.Exif()
    block = exif.get_ifd(0x8769)
    block[0x9286], block[0x927C] = (
        b"UNICODE\0" + "a cat".encode("utf-16-be"),
        b'dreamdrop\0{"prompt": "a dog"}',
    )
    Image.new("RGB", (24, 16)).save(tmp_path / "a", "JPEG", exif=exif)
    assert read_recipe(tmp_path / "a").manifest["prompt"] == "a dog"
