"""Reads the images of a result, compares them with its hashes, and saves each whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from infra.gather import gather_bounded
from producer.errors import Damaged
from producer.request_state import read_result
from schemas.errors import NotFound
from schemas.layout import parse_result, result_folder
from schemas.result import ImageResult, Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from PIL.Image import Image as Picture

    from infra.stores.store import Store

AT_ONCE = 8  # objects read at the same time


async def read_image(store: Store, image: ImageResult) -> bytes:
    """One image's bytes. Raises `Damaged` when they do not match its result."""
    try:
        body = (await store.get(image.key)).body
    except NotFound as error:
        raise Damaged(image.key, "is gone") from error
    if hashlib.sha256(body).hexdigest() != image.sha256:
        raise Damaged(image.key, "does not match its result (another sha256)")
    return body


async def pictures(store: Store, result: Result) -> list[Picture]:
    """A result's images, opened and decoded."""
    from PIL import Image

    opened: list[Image.Image] = []
    for image in result.images:
        picture = Image.open(io.BytesIO(await read_image(store, image)))
        picture.load()
        opened.append(picture)
    return opened


async def save(store: Store, result: Result, out: Path, *, flat: bool = False) -> list[Path]:
    """Save the files of a finished request. Returns their paths, the images' first.

    Args:
        out: images go to `out/<id>/0.png`; if flat, to `out/<last part of id>-0.png`.
    """
    folder = out / result.id
    if flat:
        prefix = result.id.rsplit("/", 1)[-1] + "-"
        return [
            await write(out / f"{prefix}{PurePosixPath(one.key).name}", await read_image(store, one))
            for one in result.images
        ]

    async def image(one: ImageResult, below: Path) -> Path:
        return await write(below / PurePosixPath(one.key).name, await read_image(store, one))

    async def plain(key: str) -> Path:
        return await write(folder / PurePosixPath(key).name, (await store.get(key)).body)

    files = [partial(image, one, folder) for one in result.images]
    if result.batch is not None:
        async for row in rows(store, result.id):
            files += [partial(image, one, out / row.id) for one in row.images]
        batch = result.batch
        names = (*batch.gallery_keys(), batch.contact_sheet, batch.results, batch.errors)
        files += [partial(plain, key) for key in names if key and await store.head(key) is not None]
    return await gather_bounded(files, AT_ONCE, lambda save: save())


async def rows(store: Store, batch: str) -> AsyncIterator[Result]:
    """The results of a batch's rows."""
    async for info in store.list(result_folder(batch)):
        id = parse_result(info.key)
        if id not in (None, batch) and (result := await read_result(store, id)) is not None:
            yield result


async def write(path: Path, body: bytes) -> Path:
    """Save a file whole or not at all; its folders are made."""
    await asyncio.to_thread(_replace, path, body)
    return path


def _replace(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_bytes(body)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
