"""The pictures of a training and their captions, read from a folder or an archive.

A folder of photographs holds more than photographs. What is no picture is left out and listed. What is a
picture and cannot be read stops the training before it begins, because a picture that is missing without a
word is noticed only in the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from infra import pictures
from schemas.errors import Rejected
from schemas.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_CAPTIONS = (".txt", ".caption")
_METADATA = "metadata.jsonl"  # Hugging Face's image folder: a line for each picture
_METADATA_CAPTIONS = ("text", "caption", "prompt")  # its field for the caption goes by several names
_SHORT_SIDE = 2048  # pixels; a larger picture is scaled down to it, as no model is trained on more
_LIMITS = Limits(max_input_pixels=120_000_000)  # a photograph of a good camera
_MOST_FILES = 10_000
_MOST_BYTES = 4 << 30  # of an unpacked archive


@dataclass(frozen=True)
class Picture:
    """One picture, ready to be cut."""

    name: str  # of its file
    sha256: str  # of its file
    caption: str
    image: Image.Image  # RGB, upright, its short side at most 2,048 pixels
    size: tuple[int, int]  # width and height of the file's picture, upright, pixels
    notes: tuple[str, ...] = ()  # what was changed on the way, for the plan


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class PictureSet:
    """What a folder holds."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]


def read_folder(folder: Path, prompt: str) -> PictureSet:
    """Read the pictures of a folder, in the order in which people count: 2.png before 10.png.

    A caption is in a file of the picture's name with the ending .txt or .caption, or in the folder's
    metadata.jsonl. All are UTF-8.

    Args:
        prompt: the caption of a picture that has none.

    Raises:
        Rejected: the folder or a file in it cannot be read, or holds no picture; the message names it.
    """
    try:
        entries = sorted(folder.iterdir(), key=_natural)
    except OSError as error:
        raise _refusal(f"{folder} cannot be read: {error.strerror or error}") from error
    described = _described(folder / _METADATA)
    found: list[Picture] = []
    skipped: list[Skipped] = []
    for path in entries:
        why = _not_a_picture(path, entries)
        if why is None:
            found.append(_read(path, _caption(path, described), prompt))
        elif why:
            skipped.append(Skipped(path.name, why))
    absent = set(described) - {picture.name for picture in found}
    skipped += [Skipped(name, f"{_METADATA} describes it, and it is not here") for name in sorted(absent)]
    if not found:
        others = f" ({len(skipped)} other files lie there)" if skipped else ""
        raise _refusal(f"{folder} holds no picture{others}; put PNG, JPEG or WebP files there")
    return PictureSet(_with_twins(found), tuple(skipped))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive of pictures into a folder that is empty.

    Folders in it are flattened: `dogs/rex/1.png` becomes `rex-1.png` if everything lies below `dogs`.

    Raises:
        Rejected: it is not a zip archive, is damaged, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            files = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len(files) > _MOST_FILES:
                raise _refusal(f"archive holds {len(files):,} files; {_MOST_FILES:,} are the most")
            left = _MOST_BYTES
            for entry, name in zip(files, _flat([entry.filename for entry in files]), strict=True):
                left = _write(packed, entry, folder / name, left)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        # zipfile raises RuntimeError for a password and NotImplementedError for an unknown compression.
        raise _refusal("archive cannot be unpacked; send a zip file without a password") from error


def _write(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int) -> int:
    """Unpack one file; returns how many bytes the others may have. The size in the entry may be a lie."""
    with packed.open(entry) as source, path.open("xb") as target:
        while piece := source.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise _refusal(f"archive unpacks to more than {_MOST_BYTES:,} bytes")
            target.write(piece)
    return left


def _flat(names: list[str]) -> list[str]:
    """A name without folders for each path, all different, in the paths' order."""
    paths = [
        [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..")]
        for name in names
    ]
    common = 0
    while paths and all(len(path) > common + 1 and path[common] == paths[0][common] for path in paths):
        common += 1
    taken: set[str] = set()
    flat = []
    for path in paths:
        name = "-".join(path[common:])
        hidden = any(part.startswith((".", "__MACOSX")) for part in path)
        name = f".{name}" if hidden and not name.startswith(".") else name
        while name in taken:  # only a path that is in the archive twice, or a-b/c beside a/b-c
            name = f"again-{name}"
        taken.add(name)
        flat.append(name)
    return flat


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers in names by value, and equal ones by the name itself."""
    pieces = re.findall(r"\d+|\D+", path.name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces], path.name


def _not_a_picture(path: Path, entries: list[Path]) -> str | None:
    """Why a file is left out; empty where that needs no word, None for a picture."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "a folder; pictures in folders are not read"
    if not path.is_file():
        return "not a file" if not path.is_symlink() else "a link that leads nowhere"
    if path.suffix.lower() in ENDINGS:
        return None
    if path.name == _METADATA:
        return ""
    if path.suffix.lower() in _CAPTIONS:
        stem = path.name[: -len(path.suffix)]
        if any(other.stem == stem and other.suffix.lower() in ENDINGS for other in entries):
            return ""
        return "a caption of no picture"
    return "not a picture that can be read (PNG, JPEG, WebP, BMP, GIF, TIFF)"


def _read(path: Path, caption: str | None, prompt: str) -> Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _refusal(f"{path.name} cannot be read: {error.strerror or error}") from error
    try:
        with pictures.open_picture(data, path.name, _LIMITS, formats=FORMATS) as (opened, changed):
            image, flattened = _on_white(opened)
    except Rejected as error:
        raise _refusal(error.message, "invalid_image") from error
    notes = [note.message.removeprefix(f"{path.name}: ") for note in changed]
    notes += ["transparent parts were put on white"] if flattened else []
    if caption == "":
        notes.append("its caption is empty; the instance prompt stands in")
    size = image.size
    if min(size) > _SHORT_SIDE:
        scale = _SHORT_SIDE / min(size)
        image = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
    return Picture(path.name, hashlib.sha256(data).hexdigest(), caption or prompt, image, size, tuple(notes))


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture in RGB, and whether something in it was transparent."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB"), False
    layered = picture.convert("RGBA")
    ground = Image.new("RGBA", layered.size, "white")
    see_through = layered.getchannel("A").getextrema() != (255, 255)
    return Image.alpha_composite(ground, layered).convert("RGB"), see_through


def _caption(path: Path, described: dict[str, str]) -> str | None:
    """A picture's own caption; None if it has none.

    Raises:
        Rejected: it has two that differ, or one that is not UTF-8.
    """
    found = {_METADATA: described[path.name]} if path.name in described else {}
    for suffix in _CAPTIONS:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            found[beside.name] = " ".join(_text(beside).split())
    if len(set(found.values())) > 1:
        raise _refusal(f"{path.name} has captions that differ, in {' and '.join(found)}; leave one of them")
    return next(iter(found.values()), None)


def _described(path: Path) -> dict[str, str]:
    """The captions of a metadata.jsonl, by file name; none if there is no such file."""
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
            caption = next(row[field] for field in _METADATA_CAPTIONS if field in row)
        except (ValueError, RecursionError, TypeError, KeyError, StopIteration) as error:
            text = f'line {number} of {_METADATA} should be {{"file_name": "1.png", "text": "a photo of …"}}'
            raise _refusal(text) from error
        if not (isinstance(name, str) and isinstance(caption, str)):
            raise _refusal(f"line {number} of {_METADATA}: file_name and its caption should be texts")
        captions[name] = " ".join(caption.split())
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Windows' editors put a mark at the front
    except OSError as error:
        raise _refusal(f"{path.name} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _refusal(f"{path.name} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error


def _with_twins(found: list[Picture]) -> tuple[Picture, ...]:
    """The same pictures, with a note at each that repeats an earlier one."""
    first: dict[str, str] = {}
    marked = []
    for picture in found:
        twin = first.setdefault(picture.sha256, picture.name)
        notes = picture.notes if twin == picture.name else (*picture.notes, f"the same file as {twin}")
        marked.append(replace(picture, notes=notes))
    return tuple(marked)


def _refusal(text: str, code: str = "invalid_manifest") -> Rejected:
    return Rejected(code, text, field="pictures")
