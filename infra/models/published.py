"""Publishes models into a store, and finds out what their names mean.

A version is written once: first its number is taken, then come its files, and its card is last. A name moves to
another version by the creation of the next `current/` object, so that of two moves at once each has its place.
Nothing is ever overwritten, and a number is never used again, not even after its version was removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from typing import TYPE_CHECKING

from pydantic import ValidationError

from infra.gather import gather_bounded
from infra.stores.store import SHA256, WrongContent
from schemas.errors import NotFound, Rejected
from schemas.layout import CHOSEN_ID, MODELS
from schemas.models import (
    BUILT_IN_NAMES,
    CARD,
    CardFile,
    Move,
    PublishedCard,
    card_key,
    check_name,
    current_key,
    current_prefix,
    is_path,
    model_prefix,
    parse_card,
    parse_taken,
    split_reference,
    taken_key,
    version_prefix,
)
from schemas.result import utc_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from infra.stores.store import Store

ENDINGS = (".safetensors", ".json", ".txt", ".model", ".png", ".jpg", ".webp", ".md", ".html")
_READS = 8  # cards read at a time
_MAX_CARD = 4 << 20  # bytes


async def publish(
    store: Store,
    folder: Path,
    card: PublishedCard,
    *,
    nonce: str = "",
    progress: Callable[[str, int, int], None] | None = None,
    confirm: Callable[[], Awaitable[None]] | None = None,
) -> PublishedCard:
    """Publish the files of a folder as the next version of a name, and let the name mean it.

    Args:
        card: its `version` and `files` are filled in here.
        nonce: names this publication, such as a training and its step: another try with the same nonce goes on
            with the number and the files of the first. By default each call is a publication of its own.
        progress: called with a file's path, the bytes of it that are stored, and its size.
        confirm: awaited when all files are stored; what it raises ends this before there is a version.

    Returns:
        The card as it is stored; of the first try, where that was complete.

    Raises:
        Rejected: the name or a file's name cannot be published.
        WrongContent: a file was changed meanwhile, or an earlier try with this nonce stored another one.
    """
    check_name(card.name)
    files = await asyncio.to_thread(_files_of, folder)
    for path in card.validation:
        if path not in {file.path for file in files}:
            raise Rejected.of_field("validation", f"names {path!r}, which is not in {folder}")
    version = await _take_number(store, card.name, nonce or secrets.token_hex(16), card.training)
    if (earlier := await read_card(store, card.name, version)) is None:
        prefix = version_prefix(card.name, version)
        for file in files:
            await _create(store, prefix, folder, file, progress)
        if confirm is not None:
            await confirm()
        facts = {"version": version, "files": files, "created_at": card.created_at or utc_now()}
        whole = card.model_copy(update=facts)
        created = await store.create(
            card_key(card.name, version), whole.to_json(), content_type="application/json"
        )
        earlier = whole if created else await require_card(store, card.name, version)
    await _move(store, card.name, version, only_forwards=True)  # a later publication may have been faster
    return earlier


def _files_of(folder: Path) -> tuple[CardFile, ...]:
    """The files of a folder with their hashes. Raises `Rejected` for one that is not safe to publish."""
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or any(part.startswith(".") for part in name.split("/")) or name == CARD:
            continue
        if path.is_symlink() and not path.resolve().is_file():
            raise Rejected.of_field("files", f"has {name!r}, a link to nothing")
        if not is_path(name) or path.suffix not in ENDINGS:
            raise Rejected.of_field(
                "files",
                f"has {name!r}; only these kinds of files are published: {', '.join(ENDINGS)} (no pickles, no code), "
                "with names of letters, digits, '.', '_' and '-'",
            )
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(CardFile(path=name, sha256=digest, size=path.stat().st_size))
    if not any(file.path.endswith(".safetensors") for file in files):
        raise Rejected.of_field("files", f"in {folder} hold no weights: there is no .safetensors file")
    return tuple(files)


async def _create(
    store: Store,
    prefix: str,
    folder: Path,
    file: CardFile,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    def report(done: int) -> None:
        if progress is not None:
            progress(file.path, done, file.size)

    key = prefix + file.path
    if await store.create_file(key, folder / file.path, sha256=file.sha256, progress=report):
        return
    info = await store.head(key)  # of an earlier try
    if info is None or info.metadata.get(SHA256) != file.sha256:
        raise WrongContent(f"{key} is there already with other content: publish under another nonce")


async def _take_number(store: Store, name: str, nonce: str, training: str) -> int:
    """The number that this nonce has taken, else the next free one."""
    taken = await _taken(store, name)
    for version in sorted(taken, reverse=True):
        if await _nonce_of(store, name, version) == nonce:
            return version
    version = max(taken, default=0)
    body = json.dumps({"nonce": nonce, "training": training, "at": utc_now()}).encode()
    while True:
        version += 1
        if await store.create(taken_key(name, version), body):
            return version
        if await _nonce_of(store, name, version) == nonce:  # another try of ours, in another process
            return version


async def _taken(store: Store, name: str) -> set[int]:
    keys = [info.key async for info in store.list(model_prefix(name))]
    return {version for key in keys if (version := parse_taken(key)) is not None}


async def _nonce_of(store: Store, name: str, version: int) -> str:
    try:
        document = json.loads((await store.get(taken_key(name, version), max_bytes=1 << 16)).body)
    except (NotFound, ValueError):
        return ""
    return str(document.get("nonce", "")) if isinstance(document, dict) else ""


# What a name means ----------------------------------------------------------------------------------


async def resolve(store: Store, reference: str) -> PublishedCard:
    """The card of `name` (its current version) or `name@version`.

    Raises:
        Rejected: `unknown_model`; the message says what is published.
    """
    name, version = split_reference(reference)
    if CHOSEN_ID.fullmatch(name):
        wanted = version if version is not None else await current_version(store, name)
        if wanted is not None and (card := await read_card(store, name, wanted)) is not None:
            return card
        versions = [card.version for card in await list_models(store, name)]
    else:
        versions = []
    text = f"no model is published as {reference[:200]!r}"
    if name in BUILT_IN_NAMES:
        text += f"; {name} is a built-in model, which has no versions"
    if versions:
        text += f"; the versions of {name} are {', '.join(map(str, versions))}"
    raise Rejected("unknown_model", text, field="model")


async def current_version(store: Store, name: str) -> int | None:
    """The version that a name means; None when it means none."""
    last = await _last_move(store, name)
    return None if last is None else last.version


async def _last_move(store: Store, name: str) -> Move | None:
    last = None
    async for info in store.list(current_prefix(name)):
        last = info.key
    return None if last is None else await _read_move(store, last)


async def history(store: Store, name: str) -> list[Move]:
    """The moves of a name, the oldest first."""
    keys = [info.key async for info in store.list(current_prefix(name))]
    return await gather_bounded(keys, _READS, lambda key: _read_move(store, key))


async def _read_move(store: Store, key: str) -> Move:
    try:
        move = Move.model_validate_json((await store.get(key, max_bytes=1 << 16)).body)
    except (ValidationError, NotFound):
        move = Move(version=None)
    return move.model_copy(update={"number": int(key.rpartition("/")[2])})


async def read_card(store: Store, name: str, version: int) -> PublishedCard | None:
    """The card of a version; None when there is none, or none that can be read."""
    try:
        body = (await store.get(card_key(name, version), max_bytes=_MAX_CARD)).body
        return PublishedCard.model_validate_json(body)
    except (NotFound, ValidationError):
        return None


async def require_card(store: Store, name: str, version: int) -> PublishedCard:
    """The card of a version. Raises `Rejected`."""
    return await resolve(store, f"{name}@{version}")


async def list_models(store: Store, name: str = "") -> list[PublishedCard]:
    """The cards of all versions of a name, or of all names, in order."""
    prefix = model_prefix(name) if name else MODELS
    found = [parse_card(info.key) async for info in store.list(prefix)]
    cards = await gather_bounded(
        sorted(entry for entry in found if entry), _READS, lambda entry: read_card(store, *entry)
    )
    return [card for card in cards if card is not None]


# Moving a name --------------------------------------------------------------------------------------


async def use(store: Store, reference: str) -> Move:
    """Let a name mean the given version from now on; where it does already, nothing moves. Raises `Rejected`."""
    if split_reference(reference)[1] is None:
        raise Rejected.of_field(
            "model", f"is {reference[:100]!r}; name the version too, as in {reference[:100]}@1"
        )
    card = await resolve(store, reference)
    moves = await history(store, card.name)
    if moves and moves[-1].version == card.version:
        return moves[-1]
    return await _move(store, card.name, card.version)


async def rollback(store: Store, name: str) -> Move:
    """Let a name mean the version that it meant before its last move, as far as that one is still there.

    Raises:
        Rejected: there is no earlier version to go back to.
    """
    moves = await history(store, name)
    now = moves[-1].version if moves else None
    for move in reversed(moves[:-1]):
        if move.version not in (now, None) and await read_card(store, name, move.version or 0):
            return await _move(store, name, move.version)
    raise Rejected("unknown_model", f"{name!r} has no earlier version to go back to", field="model")


async def _move(store: Store, name: str, version: int | None, *, only_forwards: bool = False) -> Move:
    """Let a name mean a version, unless with `only_forwards` it means a later one. Returns the last move."""
    while True:  # of two moves at once one takes the next number, and the other looks again
        last = await _last_move(store, name)
        if only_forwards and last is not None and last.version is not None and last.version >= (version or 0):
            return last
        number = last.number + 1 if last is not None else 1
        move = Move(version=version, at=utc_now())
        if await store.create(current_key(name, number), move.model_dump_json().encode()):
            return move.model_copy(update={"number": number})


async def withdraw(store: Store, name: str) -> Move:
    """Let a name mean nothing any more; its versions stay, and can be named."""
    return await _move(store, name, None)


async def names(store: Store) -> list[str]:
    """The names of all published models, sorted, without reading a card."""
    found = {entry[0] async for info in store.list(MODELS) if (entry := parse_card(info.key))}
    return sorted(found)
