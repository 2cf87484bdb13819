"""The decoder child: the same pixels, no credentials, no rights, and what a guilty picture costs."""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from infra import pictures
from infra.decoding import drawing
from infra.decoding.process import DecoderDown, Decoders, Source
from infra.pictures import decode_base64
from schemas.errors import Rejected
from schemas.limits import Limits
from tests.decoding import decoder_children, killed_decoders, many_scans

LIMITS = Limits()


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders()
    yield made
    made.close()


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.effect_noise(size, 80).convert(mode)


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def kinds() -> dict[str, bytes]:
    """Files of every kind that is opened, and some that are refused."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    moving = {"save_all": True, "append_images": [noise()]}
    return {
        **{f"png-{mode}": file(noise(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
        **{f"jpeg-{mode}": file(noise(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
        "jpeg-progressive": file(noise(), "JPEG", progressive=True),
        "jpeg-turned": file(noise(), "JPEG", exif=upside_down()),
        "jpeg-mpo": file(noise(), "MPO", save_all=True, append_images=[noise()]),
        "jpeg-profile": file(noise(), "JPEG", icc_profile=profile),
        "webp": file(noise("RGBA"), "WEBP", lossless=True),
        "webp-moving": file(noise(), "WEBP", **moving),
        "webp-xmp": file(noise(), "WEBP", xmp=b"<x/>", exif=upside_down()),
        "png-moving": file(noise(), **moving),
        "png-profile": file(noise(), icc_profile=profile),
        "png-turned": file(noise(), exif=upside_down()),
        "large": file(noise(size=(3000, 1500)), "JPEG"),
        "cut": file(noise(), "JPEG")[:-200],
        "gif": file(noise("P"), "GIF"),
        "text": b"no picture",
    }


def image(data: bytes) -> list[Source]:
    """A request with one picture."""
    return [Source("image", "image", data)]


def test_all_pictures_of_a_request_are_decoded_together_in_the_sizes_that_drawing_needs(decoders: Decoders):
    """A control picture gets that of the drawn one, any other its own; each note names its field as the request."""
    seen = noise(size=(13, 9))
    see_through = Image.new("RGBA", (40, 24), (255, 255, 255, 0))
    sources = [
        *image(file(noise(size=(43, 24)))),
        Source("mask_image", "mask", file(Image.new("L", (43, 24), 255))),
        Source("controlnet.0.image", "control", file(noise(size=(80, 24)))),
        Source("controlnet.1.image", "control", file(see_through)),
        Source("ip_adapter.image", "reference", file(seen)),
        Source("image.1", "reference", file(noise(size=(128, 64)))),
    ]
    answer = decoders.drawable(sources, Limits(max_side=64))
    shapes = [(name, one.mode, one.width, one.height) for name, one in answer.pictures.items()]
    assert shapes == [
        ("image", "RGB", 40, 24),
        ("mask_image", "L", 40, 24),
        ("controlnet.0.image", "RGB", 40, 24),
        ("controlnet.1.image", "RGB", 40, 24),
        ("ip_adapter.image", "RGB", 13, 9),
        ("image.1", "RGB", 64, 32),
    ]
    assert [(note.code, note.field) for note in answer.notes] == [
        ("image_resized", "image"),
        ("control_resized", "controlnet.0.image"),
        ("flattened", "controlnet.1.image"),
        ("image_resized", "image.1"),
    ]
    assert not any(answer.pictures["controlnet.1.image"].data)  # lines are white on black
    assert answer.pictures["ip_adapter.image"].data == seen.tobytes()


def test_without_an_image_the_request_says_the_size_of_its_control_pictures(decoders: Decoders):
    """And one that is no picture is refused by its field."""
    control = Source("controlnet.0.image", "control", file(noise(size=(24, 24))))
    answer = decoders.drawable([control], LIMITS, size=(48, 32))
    assert [note.message for note in answer.notes] == [
        "controlnet.0.image was 24 x 24; scaled to cover the drawn 48 x 32, and cut to it"
    ]
    with pytest.raises(Rejected, match=r"controlnet\.1\.image cannot be read as a picture") as caught:
        decoders.drawable([control, Source("controlnet.1.image", "control", b"text")], LIMITS, size=(48, 32))
    assert (caught.value.code, caught.value.field) == (pictures.INVALID, "controlnet.1.image")


def test_the_child_decodes_as_any_process_does(decoders: Decoders):
    """It may open no file, so a module that Pillow imports late would fail in it and nowhere else."""
    for name, data in kinds().items():
        try:
            whole, size, notes = drawing.decode_image(data, "image", LIMITS)
            fitted, _, more = drawing.fit(whole, None, LIMITS, size)
            expected: Any = (fitted.size, fitted.tobytes(), notes + more)
        except Rejected as error:
            expected = (error.code, error.field, error.message)
        try:
            answer = decoders.drawable(image(data), LIMITS)
            drawn = answer.pictures["image"]
            found: Any = ((drawn.width, drawn.height), drawn.data, answer.notes)
        except Rejected as error:
            found = (error.code, error.field, error.message)
        assert found == expected, name


def test_a_large_jpeg_is_decoded_smaller_and_told():
    """libjpeg scales while it decodes; the note has the file's size, and the mask fits what is left."""
    limits = Limits(max_side=64)
    picture, whole, _ = drawing.decode_image(file(noise(size=(400, 201)), "JPEG"), "image", limits)
    assert (picture.size, whole) == ((100, 51), (400, 201))
    turned, whole, _ = drawing.decode_image(
        file(noise(size=(400, 201)), "JPEG", exif=upside_down()), "image", limits
    )
    assert (turned.size, whole) == ((51, 100), (201, 400))
    fitted, mask, notes = drawing.fit(turned, Image.new("L", (201, 400)), limits, whole)
    assert mask is not None
    assert (fitted.size, mask.size) == ((32, 64), (32, 64))
    assert [note.message for note in notes] == ["image was 201 x 400; drawn at 32 x 64"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_child_has_no_credentials_and_no_rights(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    """No variable but those that Python needs; no new file, connection or process."""
    secrets = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "HF_TOKEN",
        "DREAMDROP_STORE",
        "X",
    )
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    earlier = set(decoder_children(os.getpid()))  # of other tests in this process
    decoders.drawable(image(file(noise())), LIMITS)
    [child] = set(decoder_children(os.getpid())) - earlier
    environment = (child / "environ").read_text()
    assert "secret" not in environment
    assert not [name for name in secrets if f"\0{name}=" in f"\0{environment}"]
    lines = (child / "limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines[1:]}
    assert (limits["Max open files"], limits["Max processes"], limits["Max file size"]) == ("3", "0", "0")
    assert int(limits["Max address space"]) < 2 << 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_child_that_is_killed_while_it_decodes_costs_no_request(decoders: Decoders):
    """The picture is tried again in a new child: whoever killed the first one, it was not the picture."""
    data = file(noise())
    earlier = set(decoder_children(os.getpid()))  # of other tests in this process
    expected = decoders.drawable(image(data), LIMITS)
    [child] = set(decoder_children(os.getpid())) - earlier
    pid = int(child.name)
    os.kill(pid, signal.SIGSTOP)  # so that it dies with the request in hand, and not before
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert decoders.drawable(image(data), LIMITS) == expected
    killer.join()
    assert child not in decoder_children(os.getpid())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_killed_children_blame_no_picture(decoders: Decoders):
    """Somebody kills each of them, as a system without memory does: the answer is to try again later."""
    data = file(noise())
    expected = decoders.drawable(image(data), LIMITS)

    def ask_often() -> None:
        for _ in range(1000):
            decoders.drawable(image(data), LIMITS)

    with killed_decoders(), pytest.raises(DecoderDown):
        ask_often()
    assert decoders.drawable(image(data), LIMITS) == expected


def test_a_picture_that_takes_too_long_is_refused_by_its_field(caplog: pytest.LogCaptureFixture):
    """A JPEG of 131 KB with a thousand scans costs two children; the next picture gets a third."""
    decoders = Decoders(children=1, seconds=1.0)
    try:
        whole, bomb = file(noise()), many_scans()
        mask, control = Source("mask_image", "mask", bomb), Source("controlnet.1.image", "control", bomb)
        requests = {
            "image": image(bomb),
            "mask_image": [*image(whole), mask],
            "controlnet.1.image": [*image(whole), control],
        }
        for field, sources in requests.items():
            with pytest.raises(Rejected, match=f"{field} takes too long to decode .tried twice.") as caught:
                decoders.drawable(sources, LIMITS)
            assert (caught.value.code, caught.value.field) == (pictures.INVALID, field)
        assert decoders.drawable(image(file(noise())), LIMITS).pictures["image"].width == 40
        assert caplog.text.count("a picture cost its decoder") == 6
    finally:
        decoders.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere address space has no limit")
def test_a_picture_that_needs_too_much_memory_is_refused():
    """And its child ends, so that the next picture finds all of the memory."""
    decoders = Decoders(children=1, memory=160 << 20)
    try:
        with pytest.raises(Rejected, match="image needs too much memory to decode") as caught:
            decoders.drawable(image(file(Image.new("RGB", (4096, 4096)))), LIMITS)
        assert (caught.value.code, caught.value.field) == (pictures.INVALID, "image")
        assert decoders.drawable(image(file(noise())), LIMITS).pictures["image"].width == 40
    finally:
        decoders.close()


def test_closed_decoders_blame_no_picture(decoders: Decoders):
    """A worker that stops gives the request to another."""
    decoders.close()
    with pytest.raises(DecoderDown):
        decoders.drawable(image(file(noise())), LIMITS)


def test_a_decoder_that_cannot_start_blames_no_picture(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    """And the log says why."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(DecoderDown):
        decoders.drawable(image(file(noise())), LIMITS)
    assert "no decoder can be started" in caplog.text


def test_recipe_texts_come_from_the_child(decoders: Decoders):
    """Text of any length that a recipe has; more than that is refused."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat 赤")
    assert decoders.texts(file(noise(), pnginfo=info), "image", LIMITS) == {"parameters": "a cat 赤"}
    info.add_text("prompt", "x" * (5 << 20))
    with pytest.raises(Rejected, match="more than 4 MiB of text"):
        decoders.texts(file(noise(), pnginfo=info), "image", LIMITS)


# Files as base64 ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "data:image/png;base64,", "DATA:image/png;Base64,", "data:;base64,"])
def test_base64_is_read_bare_and_as_a_data_uri(before: str):
    """Line breaks are fine, as many programs write them."""
    data = bytes(range(256))
    text = base64.encodebytes(data).decode()
    assert decode_base64(before + text, "image", LIMITS) == data


@pytest.mark.parametrize(
    "value", ["!!!!", "abc", "abc_", "data:image/png,abc", "data:", "zażółć", "AAAA=AAA"]
)
def test_wrong_base64_is_refused_in_words(value: str):
    """The field is named, the value is not repeated."""
    with pytest.raises(Rejected, match="base64") as caught:
        decode_base64(value, "mask_image", LIMITS)
    assert (caught.value.code, caught.value.field) == ("invalid_image", "mask_image")


def test_a_file_name_is_taken_for_one():
    """The sentence says where the file belongs."""
    with pytest.raises(Rejected, match=r"is the name of a file.*uploads/my-dog\.PNG") as caught:
        decode_base64("my-dog.PNG", "image", LIMITS)
    assert (caught.value.code, caught.value.field) == ("invalid_image", "image")


def test_base64_over_the_limit_is_refused():
    """Before it is decoded."""
    with pytest.raises(Rejected) as caught:
        decode_base64("A" * 4000, "image", Limits(max_body_bytes=100))
    assert caught.value.code == "too_large"
