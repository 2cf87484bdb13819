"""The child: decodes one request after another until its parent closes the pipe.

It begins by giving up what a fault in a codec could use: from then on it may open no file and no connection,
start no process, and have no more memory than its parent says.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageCms, ImageOps

from infra import pictures, recipes
from infra.decoding import drawing, frames
from infra.decoding.process import TOO_MUCH_MEMORY
from schemas.errors import Rejected
from schemas.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.result import Note

_LONGEST = 4 << 20  # characters of all the recipe texts in a picture


def main() -> None:
    """Read requests from standard input, and write answers to standard output."""
    source, out = sys.stdin.buffer, sys.stdout.buffer
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    _load_everything()
    _give_up_rights(memory)
    frames.write(out, {"ready": True})
    while True:
        try:
            head, files = frames.read(source, sys.maxsize)  # the parent is trusted
        except frames.BadFrame:  # it has closed the pipe
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        try:
            head, blobs = _answer(head, files, lambda field: frames.write(out, {"at": field}))
        except MemoryError:
            os._exit(TOO_MUCH_MEMORY)  # the next picture gets a child without this one's leftovers
        signal.setitimer(signal.ITIMER_PROF, 0)
        del files
        frames.write(out, head, blobs)
        del blobs


def _load_everything() -> None:
    """Import what Pillow imports late: after that no file can be opened."""
    Image.init()
    ImageCms.createProfile("sRGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in pictures.FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
        with Image.open(io.BytesIO(file.getvalue())) as picture:
            ImageOps.exif_transpose(picture)


def _give_up_rights(memory: int) -> None:
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, 3),  # what is open stays open
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # not every system has each of them
            resource.setrlimit(limit, (most, most))


def _answer(
    head: dict[str, Any], files: list[bytes], at: Callable[[str], None]
) -> tuple[dict[str, Any], list[bytes]]:
    """The answer to one request, and its pixels."""
    limits, field = Limits(**head["limits"]), head["field"]
    found: list[Image.Image] = []
    notes: list[Note] = []
    texts: dict[str, str] = {}
    try:
        match head["do"]:
            case "draw":
                found, notes = _draw(head, files, limits, at)
            case "open":
                found = [_open(files[0], field, limits)]
            case "texts":
                _open(files[0], field, limits)
                texts = recipes.recipe_texts(io.BytesIO(files[0]), field)
                if sum(map(len, texts.values())) > _LONGEST:
                    raise Rejected.of_field(field, "carries more than 4 MiB of text", pictures.INVALID)
            case other:
                raise ValueError(f"{other!r} is nothing that a decoder does")
    except Rejected as error:
        _reraise_if_ours(error)
        return {"refused": {"message": error.message, "field": error.field}}, []
    shapes = [(picture.mode, *picture.size) for picture in found]
    answer = {"pictures": shapes, "notes": [note.model_dump() for note in notes], "texts": texts}
    return answer, [picture.tobytes() for picture in found]


def _draw(
    head: dict[str, Any], files: list[bytes], limits: Limits, at: Callable[[str], None]
) -> tuple[list[Image.Image], list[Note]]:
    """The pictures of a request in the order of their files."""
    found: list[Image.Image] = []
    notes: list[Note] = []
    sources = list(zip(head["fields"], head["uses"], files, strict=True))
    size = tuple(head["size"] or ())
    if sources[0][1] == "image":
        masked = len(sources) > 1 and sources[1][1] == "mask"
        found, notes = _draw_image(sources[: 1 + masked], limits, head["multiple"], at)
        size, sources = found[0].size, sources[1 + masked :]
    for field, use, data in sources:
        at(field)
        if use == "control":
            picture, more = drawing.decode_control(data, field, limits, size)
        else:
            picture, more = drawing.decode_reference(data, field, limits)
        found.append(picture)
        notes += more
    return found, notes


def _draw_image(
    sources: list[tuple[str, str, bytes]], limits: Limits, multiple: int, at: Callable[[str], None]
) -> tuple[list[Image.Image], list[Note]]:
    """The picture to start from, and its mask if there is one."""
    (field, _, data), *masks = sources
    image, whole, notes = drawing.decode_image(data, field, limits)
    if not masks:
        image, _, more = drawing.fit(image, None, limits, whole, multiple, field)
        return [image], notes + more
    at(masks[0][0])
    mask, of_mask = drawing.decode_mask(masks[0][2], masks[0][0], limits)
    image, fitted, more = drawing.fit(image, mask, limits, whole, multiple, field)
    assert fitted is not None, "there is a mask"
    return [image, fitted], [*notes, *of_mask, *more, *drawing.mask_notes(fitted)]


def _open(data: bytes, field: str, limits: Limits) -> Image.Image:
    with pictures.open_picture(data, field, limits) as (picture, _):
        if picture.mode in ("L", "RGB", "RGBA"):
            return picture
        return picture.convert("RGBA" if "A" in picture.mode or "transparency" in picture.info else "RGB")


def _reraise_if_ours(error: Rejected) -> None:
    """Blame no picture for what this process may not do: a module that Pillow imports later than we know."""
    cause = error.__cause__
    if isinstance(cause, ImportError) or (isinstance(cause, OSError) and cause.errno == errno.EMFILE):
        raise RuntimeError("a decoder wanted a file that it cannot open") from cause


if __name__ == "__main__":
    main()
