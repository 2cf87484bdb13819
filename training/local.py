"""Prepares a training from this machine's files: its manifest, its plan, and its pictures in the store."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.claims.trainings import TrainingStore
from schemas import layout
from schemas.errors import Rejected, StoreUnavailable
from schemas.layout import MODELS, TRAINING_UPLOADS
from schemas.training import Training, validate_training
from training import pictures

if TYPE_CHECKING:
    from infra.stores.store import Store
    from training.pictures import PictureSet


class LocalPictures:
    """A folder of pictures, or an archive that is unpacked for as long as this is used with `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unpacked: Path | None = None

    def __enter__(self) -> Path:
        if self._path.is_dir():
            return self._path
        if not self._path.exists():
            raise Rejected.of_field(
                "instance_images", f"{str(self._path)!r}: there is no such folder or archive"
            )
        self._unpacked = Path(tempfile.mkdtemp(prefix="dreamdrop-pictures-"))
        try:
            pictures.unpack(self._path, self._unpacked)
        except BaseException:
            shutil.rmtree(self._unpacked, ignore_errors=True)
            raise
        return self._unpacked

    def __exit__(self, *_: object) -> None:
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)


def with_pictures(training: Training, found: PictureSet) -> Training:
    """The training with the keys that its pictures get, which follow from their content."""
    rows = [
        {
            "image": f"{TRAINING_UPLOADS}{picture.sha256}{Path(picture.name).suffix.lower()}",
            "name": picture.name,
            "caption": None if picture.caption == training.instance_prompt else picture.caption,
        }
        for picture in found.pictures
    ]
    return validate_training({**training.model_dump(mode="json"), "pictures": rows, "archive": None})


def body_of(training: Training) -> bytes:
    """The manifest's bytes; equal for equal trainings."""
    document: dict[str, Any] = training.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(document, ensure_ascii=False, sort_keys=True, indent=1).encode()


def id_of(training: Training, body: bytes) -> str:
    """The id of a training: the same command finds its training again."""
    return f"{training.name[:80]}-{layout.fingerprint(body)[:8]}"


async def drop(store: Store, id: str, body: bytes, training: Training, folder: Path) -> bool:
    """Store the pictures, then the manifest; False when the training is known already."""
    view = TrainingStore(store)
    if await is_known(view, id):
        return False
    for picture in training.pictures:
        path = folder / str(picture.name)
        sha256 = Path(picture.image).stem
        await store.create_file(picture.image, path, sha256=sha256)
    return await view.create(layout.request_key(id), body, content_type="application/json")


def has_models(url: str) -> bool:
    """Whether models may be published in a store. To open a directory makes it, so this looks first."""
    return "://" in url or (Path(url).expanduser() / MODELS).is_dir()


def require_store(url: str) -> None:
    """A command that only reads must not make a directory whose name is mistyped. Raises `StoreUnavailable`."""
    if "://" not in url and not Path(url).expanduser().is_dir():
        raise StoreUnavailable(f"there is no store {url!r}: give its directory or bucket with --store")


async def is_known(view: TrainingStore, id: str) -> bool:
    """Whether a training was dropped, is under way, or has ended."""
    if await view.head(layout.request_key(id)) or await view.head(layout.result_key(id)):
        return True
    async for _info in view.list(layout.claims_prefix(id)):
        return True
    return False
