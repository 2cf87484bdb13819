"""What a training leaves for people: its report page, and the validation pictures that it drew along the way.

They lie in `training-results/<id>/`, among checkpoints that are for trainers only.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.gather import gather_bounded
from producer import collect
from producer.request_state import MOST, first
from schemas.errors import NotFound, TooLarge
from schemas.layout import result_folder

if TYPE_CHECKING:
    from infra.claims.trainings import TrainingStore

REPORT = "report.html"
MAX_REPORT, MAX_PICTURE = 128 << 20, 32 << 20  # bytes that are read
AT_ONCE = 8  # objects that are read at the same time
_VALIDATION = "validation/"
_PROMPTS = _VALIDATION + "prompts.json"
_PICTURE = re.compile(r"validation/(?P<step>\d{1,9})/(?P<index>\d{1,4})\.png")


@dataclass(frozen=True, order=True, slots=True)
class ValidationPicture:
    """A picture that the model drew after a step of its training; step 0 is before."""

    step: int
    index: int  # which of the validation prompts, from 0
    name: str  # of its file, below the training's folder


@dataclass(frozen=True, slots=True)
class Validation:
    """All pictures of a training, by step and prompt."""

    pictures: tuple[ValidationPicture, ...]
    prompts: tuple[str, ...]  # may be fewer than there are pictures of a step

    def prompt(self, picture: ValidationPicture) -> str:
        return self.prompts[picture.index] if picture.index < len(self.prompts) else ""


def report_key(id: str) -> str:
    """The key of a training's report in its part of the store."""
    return result_folder(id) + REPORT


async def read_validation(store: TrainingStore, id: str) -> Validation:
    """The validation pictures that are there by now."""
    folder = result_folder(id)
    found = []
    async for info in first(store.list(folder + _VALIDATION), MOST):
        name = info.key.removeprefix(folder)
        if match := _PICTURE.fullmatch(name):
            found.append(ValidationPicture(int(match["step"]), int(match["index"]), name))
    prompts: object = None
    with contextlib.suppress(NotFound, TooLarge, ValueError, RecursionError):
        prompts = json.loads((await store.get(folder + _PROMPTS, max_bytes=1 << 20)).body)
    texts = tuple(map(str, prompts)) if isinstance(prompts, list) else ()
    return Validation(tuple(sorted(found)), texts)


async def read_picture(store: TrainingStore, id: str, step: int, index: int) -> bytes:
    """One validation picture, a PNG. Raises `NotFound`, `TooLarge`."""
    key = f"{result_folder(id)}{_VALIDATION}{step:06d}/{index}.png"
    return (await store.get(key, max_bytes=MAX_PICTURE)).body


async def save(store: TrainingStore, id: str, out: Path) -> list[Path]:
    """Save the report page, if there is one, and the validation pictures, in the folder `out/<id>/`."""
    pictures = (await read_validation(store, id)).pictures
    folder, into = result_folder(id), out / id

    async def one(name: str) -> Path | None:
        with contextlib.suppress(NotFound):
            body = (await store.get(folder + name, max_bytes=MAX_REPORT)).body
            return await collect.write(into / name, body)
        return None

    names = [REPORT, *([_PROMPTS] if pictures else []), *(picture.name for picture in pictures)]
    return [path for path in await gather_bounded(names, AT_ONCE, one) if path is not None]
