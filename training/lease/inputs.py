"""Fetches what a training starts from: its pictures and its base model, into local folders.

What the first attempt fetched is frozen by name and hash, in an object beside the result. A later attempt that
finds something else fails, because it would go on with another training under the same name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from infra.pictures import decode_base64
from infra.stores.keys import MAX_KEY_BYTES
from infra.stores.store import InvalidKey
from schemas.errors import NotFound, Rejected
from schemas.layout import FROZEN
from schemas.limits import Limits
from schemas.training import Training, TrainingFolder
from training import checks, pictures
from training.bases import Base
from training.lease import saved
from training.lease.base_models import check_family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.stores.store import Store
    from training.lease.base_models import BaseModels, FetchedBase
    from training.lease.pulse import Pulse

_LIMITS = Limits(max_body_bytes=64 << 20)  # of one inline picture
_SIGNATURES = {  # how a file begins, and its usual ending
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}
_UNSAFE = re.compile(r"[^\w .+()-]")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Reads the pictures that a training contains or names, and its base."""

    store: Store
    bases: BaseModels
    prefixes: Sequence[str] = ("uploads/",)  # keys that a training may name
    logs: Path | None = None  # where each training's curves go, in a folder of its id

    def on(self, store: Store, pulse: Pulse) -> Inputs:
        """The same through a view of the store that tells a pulse what moves."""
        return replace(self, store=store, bases=replace(self.bases, store=store, pulse=pulse))

    async def fetch(self, id: str, training: Training, folder: Path) -> tuple[TrainingFolder, FetchedBase]:
        """Make the folders `pictures` and, where needed, the base's, and check them against the first attempt's.

        Raises:
            Rejected: something is missing, not allowed, or has changed since the first attempt.
            StoreUnavailable: the store does not answer.
        """
        shown = folder / "pictures"
        shown.mkdir()
        if training.archive is not None:
            archive = folder / "archive.zip"
            await self._fetch(training.archive, archive, "archive")
            await asyncio.to_thread(pictures.unpack, archive, shown)
            archive.unlink()
        elif training.pictures:
            await self._pictures(training, shown)
        else:
            raise Rejected.of_field("pictures", "is missing; give pictures, or an archive of them")
        frozen = await self._frozen(id)
        hashes = await asyncio.to_thread(_hashes, shown)
        if frozen is not None and frozen["pictures"] != hashes:
            changed = sorted({*hashes.items()} ^ {*frozen["pictures"].items()})[0][0]
            raise Rejected.of_field(
                "pictures", f"has changed since the training began ({changed}); drop it under another name"
            )
        base = await self.bases.fetch(training.base, (frozen or {}).get("base"))
        try:
            read = Base.read(base.folder, training.base)
            checks.options_as_given(training, read)  # what needs no pictures is refused without a child
            checks.resolution(training, read)
            await check_family(self.store, training.name, read)
            if frozen is None:
                found = {"base": {"name": base.name, "revision": base.revision}, "pictures": hashes}
                await self.store.create(saved.folder_of(id) + FROZEN, json.dumps(found, indent=2).encode())
        except BaseException:
            base.release()
            raise
        work = TrainingFolder(
            training=training,
            base_folder=str(base.folder),
            pictures_folder=str(shown),
            logging_folder=str(self.logs.absolute() / id) if self.logs else None,
        )
        return work, base

    async def _frozen(self, id: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((await self.store.get(saved.folder_of(id) + FROZEN)).body)
        except NotFound:
            return None
        return document

    async def _pictures(self, training: Training, folder: Path) -> None:
        captions: list[dict[str, str]] = []
        for number, picture in enumerate(training.pictures):
            field = f"pictures.{number}.image"
            is_key = len(picture.image) <= MAX_KEY_BYTES and picture.image.startswith(tuple(self.prefixes))
            temporary = folder / f"{number}.part"
            if is_key:
                await self._fetch(picture.image, temporary, field)
            else:
                temporary.write_bytes(decode_base64(picture.image, field, _LIMITS))
            wanted = picture.name or (PurePosixPath(picture.image).name if is_key else f"{number + 1}")
            path = folder / _file_name(wanted, temporary, field)
            if path.exists():
                raise Rejected.of_field(f"pictures.{number}.name", f"{path.name!r} is there twice")
            temporary.rename(path)
            if picture.caption is not None:
                captions.append({"file_name": path.name, "text": picture.caption})
        if captions:  # in one file: 1.png and 1.jpg would share a 1.txt
            lines = "".join(json.dumps(row) + "\n" for row in captions)
            (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")

    async def _fetch(self, key: str, path: Path, field: str) -> None:
        if ".." in key or not key.startswith(tuple(self.prefixes)):
            allowed = ", ".join(self.prefixes) or "none"
            raise Rejected.of_field(
                field, f"names a key that this trainer may not read; allowed prefixes: {allowed}"
            )
        try:
            await self.store.fetch_file(key, path)
        except (NotFound, InvalidKey) as error:
            raise Rejected.of_field(field, f"names {key[:200]!r}, and there is no such object") from error


def _file_name(wanted: str, file: Path, field: str) -> str:
    """A safe name with a picture's ending."""
    name = _UNSAFE.sub("_", PurePosixPath(wanted).name).lstrip(".")[:150] or "picture"
    if name.lower().endswith(pictures.ENDINGS):
        return name
    with file.open("rb") as stream:
        begins = stream.read(8)
    for signature, ending in _SIGNATURES.items():
        if begins.startswith(signature):
            return name + ending
    raise Rejected.of_field(
        field, "is not a picture that can be read; send PNG, JPEG or WebP", "invalid_image"
    )


def _hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
