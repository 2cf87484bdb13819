"""A training's pictures: what strangers' folders hold, read or refused by name; and the cut to a bucket."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from schemas.errors import Rejected
from training import buckets
from training.pictures import PictureSet, read_folder, unpack

PROMPT = "a photo of sks dog"


def save(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> Path:
    """A picture whose left half is red, or dark, and whose right half is white."""
    picture = Image.new("RGB", size, "white")
    picture.paste("red", (0, 0, size[0] // 2, size[1]))
    picture.convert(mode).save(path, **options)
    return path


def notes(found: PictureSet, name: str) -> tuple[str, ...]:
    return next(picture.notes for picture in found.pictures if picture.name == name)


def test_a_folder_as_people_have_them(tmp_path):
    """Pictures of every kind are read as RGB in natural order; the rest is listed with a reason."""
    save(tmp_path / "10.png")
    save(tmp_path / "2.jpg", quality=95)
    save(tmp_path / "3.JPEG", mode="CMYK")
    save(tmp_path / "4.webp", mode="RGBA")
    save(tmp_path / "5.gif", mode="P")
    save(tmp_path / "6.bmp", mode="L")
    save(tmp_path / "7.tif", mode="LA")
    for stray in (".DS_Store", "Thumbs.db", "clip.mp4", "2.txt", "lonely.txt"):
        (tmp_path / stray).write_text("a red thing" if stray.endswith("txt") else "x")
    (tmp_path / "raw").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = read_folder(tmp_path, PROMPT)
    names = [picture.name for picture in found.pictures]
    assert names == ["2.jpg", "3.JPEG", "4.webp", "5.gif", "6.bmp", "7.tif", "10.png"]
    assert {picture.image.mode for picture in found.pictures} == {"RGB"}
    for picture in found.pictures:
        left, right = picture.image.getpixel((4, 15)), picture.image.getpixel((36, 15))
        assert min(right) > 240, picture.name
        assert left[1] < 140, picture.name
    assert [picture.caption for picture in found.pictures] == ["a red thing", *[PROMPT] * 6]
    assert {s.name: s.why.split(";")[0] for s in found.skipped} == {
        ".DS_Store": "hidden",
        "Thumbs.db": "not a picture that can be read (PNG, JPEG, WebP, BMP, GIF, TIFF)",
        "clip.mp4": "not a picture that can be read (PNG, JPEG, WebP, BMP, GIF, TIFF)",
        "lonely.txt": "a caption of no picture",
        "raw": "a folder",
        "gone.png": "a link that leads nowhere",
    }


def test_pictures_are_upright_flat_and_of_eight_bits(tmp_path):
    """Turned by EXIF; transparent parts on white; 16 bits scaled, not cut; the first frame of an animation."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    save(tmp_path / "turned.jpg", exif=exif)
    clear = Image.new("RGBA", (8, 8), (0, 0, 255, 0))
    clear.paste((0, 128, 0, 255), (0, 0, 4, 8))
    clear.save(tmp_path / "clear.png")
    Image.new("I;16", (8, 8), 0x8000).save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    found = read_folder(tmp_path, PROMPT)
    by_name = {picture.name: picture for picture in found.pictures}
    assert by_name["turned.jpg"].size == (30, 40)
    assert by_name["clear.png"].image.getpixel((6, 4)) == (255, 255, 255)
    assert notes(found, "clear.png") == ("transparent parts were put on white",)
    assert by_name["deep.png"].image.getpixel((4, 4)) == (128, 128, 128)
    assert by_name["moving.gif"].image.getpixel((4, 4)) == (0, 128, 0)
    assert notes(found, "moving.gif") == ("only its first frame is used",)


def test_large_pictures_are_held_small_and_their_size_is_told(tmp_path):
    """A photograph of a camera does not stay in memory at its full size."""
    Image.new("RGB", (6000, 4000)).save(tmp_path / "camera.jpg")
    (picture,) = read_folder(tmp_path, PROMPT).pictures
    assert picture.size == (6000, 4000)
    assert picture.image.size == (3072, 2048)


def test_a_file_that_is_there_twice_is_told_of(tmp_path):
    """The second of two equal files has a note with the name of the first."""
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert notes(read_folder(tmp_path, PROMPT), "b.png") == ("the same file as a.png",)


def test_captions_from_every_place(tmp_path):
    """.txt, .caption and metadata.jsonl, with a mark of Windows' editors and line breaks; an empty one is told of."""
    for name in ("a", "b", "c", "d"):
        save(tmp_path / f"{name}.png", size=(40, 30 + ord(name) % 8))
    (tmp_path / "a.txt").write_bytes("\ufeffein süßer\r\nHund".encode())
    (tmp_path / "b.caption").write_text("dog, sitting")
    (tmp_path / "d.txt").write_text(" \n")
    rows = [{"file_name": "c.png", "text": "from the table"}, {"file_name": "z.png", "text": "absent"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = read_folder(tmp_path, PROMPT)
    assert [p.caption for p in found.pictures] == ["ein süßer Hund", "dog, sitting", "from the table", PROMPT]
    assert notes(found, "d.png") == ("its caption is empty; the instance prompt stands in",)
    assert [(s.name, s.why) for s in found.skipped] == [
        ("z.png", "metadata.jsonl describes it, and it is not here")
    ]


def _two_captions(folder: Path) -> None:
    (folder / "1.txt").write_text("a dog")
    (folder / "1.caption").write_text("a cat")


REFUSED = {
    "truncated": (lambda f: (f / "2.png").write_bytes((f / "1.png").read_bytes()[:60]), "2.png is damaged"),
    "not a picture": (lambda f: (f / "2.jpg").write_bytes(b"<html>"), "2.jpg cannot be read as a picture"),
    "empty": (lambda f: (f / "2.webp").write_bytes(b""), "2.webp cannot be read as a picture"),
    "floating point": (lambda f: save(f / "2.tif", mode="F"), "2.tif has floating-point pixels"),
    "latin-1 caption": (lambda f: (f / "1.txt").write_bytes("süß".encode("latin-1")), "1.txt is not UTF-8 (byte 2)"),
    "two captions": (_two_captions, "1.png has captions that differ, in 1.txt and 1.caption"),
    "metadata of another shape": (
        lambda f: (f / "metadata.jsonl").write_text('{"image": "1.png"}'),
        "line 1 of metadata.jsonl should be",
    ),
    "metadata with a number": (
        lambda f: (f / "metadata.jsonl").write_text('{"file_name": "1.png", "text": 7}'),
        "line 1 of metadata.jsonl: file_name and its caption should be texts",
    ),
    "deep metadata": (lambda f: (f / "metadata.jsonl").write_text("[" * 100_000), "line 1 of metadata.jsonl should be"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, kind):
    """A picture or caption that would be missing without a word stops the training before it begins."""
    save(tmp_path / "1.png")
    spoil, words = REFUSED[kind]
    spoil(tmp_path)
    with pytest.raises(Rejected) as refused:
        read_folder(tmp_path, PROMPT)
    assert refused.value.message.startswith(words)
    assert refused.value.field == "pictures"


def test_a_folder_without_pictures(tmp_path):
    """An empty folder, one with other files, and none at all."""
    with pytest.raises(Rejected, match="holds no picture; put PNG"):
        read_folder(tmp_path, PROMPT)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(Rejected, match=r"holds no picture \(1 other files lie there\)"):
        read_folder(tmp_path, PROMPT)
    with pytest.raises(Rejected, match="cannot be read: No such file"):
        read_folder(tmp_path / "absent", PROMPT)


def test_an_archive_is_flattened_and_cannot_leave_its_folder(tmp_path):
    """The folder that holds everything goes; others become part of the names; no path leads outside."""
    picture = save(tmp_path / "1.png").read_bytes()
    archive = tmp_path / "dogs.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("dogs/1.png", "dogs/rex/1.png", "dogs/.DS_Store", "dogs/../../evil.png", "dogs/1.txt"):
            packed.writestr(name, b"a dog" if name.endswith("txt") else picture)
    out = tmp_path / "out" / "here"
    out.mkdir(parents=True)
    unpack(archive, out)
    assert sorted(path.name for path in out.iterdir()) == [
        ".DS_Store", "1.png", "1.txt", "evil.png", "rex-1.png",
    ]  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    found = read_folder(out, PROMPT)
    assert [p.caption for p in found.pictures] == ["a dog", PROMPT, PROMPT]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"Rar!\x1a\x07"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    """Any other file, and a damaged one."""
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(Rejected, match="archive cannot be unpacked; send a zip file"):
        unpack(tmp_path / "x.zip", tmp_path)


def test_buckets_have_one_area_and_every_shape():
    """Sides are multiples of 64, the area stays near, and the shape runs past 1:2 and 2:1."""
    found = buckets.sizes(512, 64)
    assert (512, 512) in found
    assert all(width % 64 == height % 64 == 0 for width, height in found)
    assert all(0.8 * 512 * 512 <= width * height <= 512 * 512 for width, height in found)
    assert min(w / h for w, h in found) <= 0.5
    assert {(h, w) for w, h in found} == set(found)


def test_a_picture_goes_to_the_bucket_of_its_shape():
    """The cut is smaller than with any other bucket."""
    found = buckets.sizes(512, 64)
    rng = random.Random(3)
    for _ in range(200):
        size = (rng.randrange(100, 4000), rng.randrange(100, 4000))
        chosen = buckets.nearest(size, found)

        def kept(bucket: tuple[int, int], size: tuple[int, int] = size) -> float:
            shapes = size[0] / size[1], bucket[0] / bucket[1]
            return min(shapes) / max(shapes)

        assert kept(chosen) == max(kept(bucket) for bucket in found)


def test_the_cut_lies_where_it_was_asked_for():
    """Left, middle and right of a wide picture; mirrored; never a pixel from outside."""
    picture = Image.new("RGB", (300, 100))
    for x in range(300):
        picture.paste((x % 256, x // 256, 7), (x, 0, x + 1, 100))

    def left_edge(x: float, flip: bool = False) -> int:
        red, green, blue = buckets.crop(picture, (100, 100), x=x, y=0.5, flip=flip).getpixel((0, 50))
        assert blue == 7
        return red + 256 * green

    assert [left_edge(x) for x in (0, 0.5, 1)] == [0, 100, 200]
    assert left_edge(0, flip=True) == 99
    assert buckets.crop(picture, (64, 128), x=1, y=0, flip=False).size == (64, 128)
