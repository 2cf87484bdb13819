"""Removes what trainings of long ago have left: results, checkpoints, and pictures that were uploaded for them.

What stays, whatever its age:

- a training that is waiting or claimed, because a trainer may go on with it, and the one that it goes on from;
- of a training that a published model names, the result, the request and the report. Its checkpoints and class
  pictures, which only `train continue` needs, go.

As with requests, the result manifest is deleted last (`infra.claims.retention`), and a checkpoint's commit file first,
so a crash leaves neither a free id with files nor a checkpoint that is not whole.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from infra.claims.claim import Claim
from infra.claims.kept_request import with_request
from infra.claims.retention import AT_ONCE, LEAST, store_time
from infra.claims.trainings import MAX_BODY, TrainingStore, in_store
from infra.gather import gather_bounded
from infra.models.published import list_models
from infra.stores.directory.store import DirectoryStore
from infra.stores.store import InvalidKey
from schemas import layout
from schemas.errors import DreamError, NotFound, Rejected, TooLarge
from schemas.result import Result
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info, Store

_FOR_CONTINUING = (layout.CHECKPOINTS, layout.CLASS_PICTURES)  # below a training's folder
_MAX_CLAIM = 2 * MAX_BODY  # bytes of a claim that is read; it holds the training as a JSON text


class Unreadable(DreamError):
    """A training that is not over cannot be read, so nobody knows what it needs."""


@dataclass(slots=True)
class OldTraining:
    """A training that ended long ago, with what goes of it."""

    id: str
    commit: Info  # its result manifest
    going: list[Info] = field(default_factory=list)  # without the result manifest
    whole: bool = True  # False: its result stays, because a published model names it

    @property
    def objects(self) -> int:
        return len(self.going) + self.whole

    @property
    def bytes(self) -> int:
        return sum(info.size for info in self.going) + self.whole * self.commit.size


@dataclass(slots=True)
class TrainingSurvey:
    """What a removal would take, and what it leaves although it is old enough."""

    going: list[OldTraining] = field(default_factory=list)  # in the order of their ids
    uploads: list[Info] = field(default_factory=list)  # pictures that no training needs any more
    open: list[str] = field(
        default_factory=list
    )  # ids that are asked for again, or that an open training goes on from

    def totals(self) -> dict[str, int]:
        """Counts of what would go, for people and programs."""
        sums = Counter[str](trainings=0, checkpoints_of_published=0, uploads=len(self.uploads))
        sums.update(objects=len(self.uploads), bytes=sum(info.size for info in self.uploads))
        for old in self.going:
            kind = "trainings" if old.whole else "checkpoints_of_published"
            sums.update({kind: 1, "objects": old.objects, "bytes": old.bytes})
        return dict(sums)


async def survey(store: Store, older_than: float, *, failed: bool = False) -> TrainingSurvey:
    """What ended more than `older_than` seconds ago by the store's clock; nothing is removed.

    Args:
        failed: only trainings that published nothing.

    Raises:
        ValueError: `older_than` is less than `LEAST`.
        Unreadable: a dropped training cannot be read, so nobody knows what it needs.
        StoreUnavailable: the store does not answer.
    """
    if older_than < LEAST:
        raise ValueError(f"older_than is {older_than:g} s; the least is {LEAST:g} s")
    before = await store_time(store) - older_than
    needed = await _needed(store, {})
    ended = await _ended(TrainingStore(store), needed.ids)
    published = {card.training for card in await list_models(store)}
    found = TrainingSurvey()
    keeps: list[str] = []  # ids of those that can still be continued afterwards
    for id, old in ended.items():
        old.whole = id not in published
        is_going = old.commit.modified < before and not (failed and await _has_published(store, id))
        if is_going and id in needed.ids:
            found.open.append(id)
        elif is_going:
            if not old.whole:
                old.going = [info for info in old.going if _is_for_continuing(id, info)]
            if old.whole or old.going:
                found.going.append(old)
            continue
        if any(_is_for_continuing(id, info) for info in old.going):
            keeps.append(id)
    wanted = set(needed.keys)
    for keys in await gather_bounded(keeps, AT_ONCE, lambda id: _uploads_of_ended(store, id)):
        wanted |= keys
    async for info in store.list(layout.TRAINING_UPLOADS):
        if info.modified < before and info.key not in wanted:
            found.uploads.append(info)
    return found


async def remove(store: Store, found: TrainingSurvey) -> None:
    """Remove what a survey found. It may be repeated after any error.

    What is asked for since the survey stays.

    Raises:
        Unreadable: a dropped training cannot be read; a part is removed.
        StoreUnavailable: the store does not answer; a part is removed.
    """
    view = TrainingStore(store)
    read: _Read = {}
    for old in found.going:
        info = await view.head(layout.result_key(old.id))
        if info is None or info.etag != old.commit.etag or old.id in (await _needed(store, read)).ids:
            continue
        commits = [each for each in old.going if _is_checkpoint(old.id, each)]
        others = [each for each in old.going if each not in commits]
        for part in (commits, others):
            await gather_bounded(part, AT_ONCE, lambda each: view.delete(each.key, etag=each.etag))
        if old.whole:
            await view.delete(layout.status_key(old.id))
            await view.delete(layout.result_key(old.id), etag=old.commit.etag)
    if found.uploads:
        keys = (await _needed(store, read)).keys
        uploads = [info for info in found.uploads if info.key not in keys]
        await gather_bounded(uploads, AT_ONCE, lambda info: store.delete(info.key, etag=info.etag))
    if isinstance(store, DirectoryStore):
        await store.remove_empty_folders(layout.TRAINING_RESULTS)


# What is not over ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Needed:
    """What trainings need that are waiting or claimed."""

    ids: set[str] = field(default_factory=set)  # their own, and those that they go on from
    keys: set[str] = field(default_factory=set)  # of uploads

    def add(self, document: dict[str, Any]) -> None:
        """Add what a training's document names."""
        if isinstance(source := document.get("resume_from"), str):
            self.ids.add(source)
        self.keys |= _keys(document)


#: What each object names, by key and etag: a training may hold megabytes of pictures, and is read once.
_Read = dict[tuple[str, str], _Needed]


async def _needed(store: Store, read: _Read) -> _Needed:
    """Look in the order in which a training moves, so that it is seen, however fast it is."""
    view = TrainingStore(store)
    all_needed = _Needed()
    # People leave other files beside the trainings.
    dropped = [info async for info in view.list(layout.REQUESTS) if info.key.lower().endswith(layout.SINGLE)]
    await _add(all_needed, view, dropped, read)
    newest: dict[str, Info] = {}
    async for info in view.list(layout.CLAIMS):
        claim = layout.parse_claim(info.key)
        if claim is not None and not claim[2]:
            newest[claim[0]] = info  # keys ascend, so the last one has the newest epoch
    await _add(all_needed, view, newest.values(), read)
    return all_needed


async def _add(needed: _Needed, view: TrainingStore, infos: Iterable[Info], read: _Read) -> None:
    for info in infos:
        named = read.get((info.key, info.etag))
        if named is None:
            named = read[info.key, info.etag] = await _read(view, info)
        needed.ids |= named.ids
        needed.keys |= named.keys


async def _read(view: TrainingStore, info: Info) -> _Needed:
    """What a dropped training, or a claim, names."""
    claimed = layout.parse_claim(info.key)
    needed = _Needed({claimed[0] if claimed else layout.request_id(info.key)})
    try:
        body = (await view.get(info.key, max_bytes=_MAX_CLAIM if claimed else MAX_BODY)).body
        if not claimed:
            needed.add(_document(body, in_store(info.key)))
            return needed
        frozen = Claim.model_validate_json(body).frozen.body()
        with contextlib.suppress(Rejected):  # it was claimed to be refused
            needed.add(load_object(frozen))
    except (NotFound, InvalidKey):
        pass  # a dropped one is claimed by now; a claimed one is over, and its result is young
    except (ValueError, TooLarge) as error:
        if claimed:  # a dropped file that is too large fails, and needs nothing
            raise Unreadable(
                f"{in_store(info.key)} cannot be read, so no training is removed: {error}"
            ) from error
    return needed


def _keys(document: dict[str, Any]) -> set[str]:
    """The keys of uploads that a training names."""
    pictures = document.get("pictures")
    rows = pictures if isinstance(pictures, list) else []
    named = [document.get("archive"), *(row.get("image") for row in rows if isinstance(row, dict))]
    return {key for key in named if isinstance(key, str) and key.startswith(layout.UPLOADS)}


def _document(body: bytes, key: str) -> dict[str, Any]:
    try:
        return load_object(body)
    except Rejected as error:
        raise Unreadable(
            f"{key} cannot be read, so nobody knows what it needs, and no training is removed: wait until a trainer "
            f"has answered it, or remove it ({error.message})"
        ) from error


# What has ended --------------------------------------------------------------------------------------


async def _ended(view: TrainingStore, open_: set[str]) -> dict[str, OldTraining]:
    """Every training that has a result manifest, with the files in its folder, in the order of the ids."""
    infos = [info async for info in view.list(layout.RESULTS)]
    found = {id: OldTraining(id, info) for info in infos if (id := layout.parse_result(info.key))}
    for info in infos:
        owner = _owner(info.key, found.keys() | open_)
        if owner in found and info.key != layout.result_key(owner):
            found[owner].going.append(info)
    return dict(sorted(found.items()))


def _owner(key: str, ids: set[str]) -> str:
    """The longest id in whose folder a key lies; "" where there is none."""
    folder = key.removeprefix(layout.RESULTS)
    while folder := folder.rpartition("/")[0]:
        if folder in ids:
            return folder
    return ""


def _is_for_continuing(id: str, info: Info) -> bool:
    return info.key.removeprefix(layout.result_folder(id)).startswith(_FOR_CONTINUING)


def _is_checkpoint(id: str, info: Info) -> bool:
    """Whether an object makes the files beside it a checkpoint."""
    return _is_for_continuing(id, info) and info.key.endswith(f"/{layout.CHECKPOINT_COMMIT}")


async def _result(store: Store, id: str) -> Result | None:
    with contextlib.suppress(NotFound, TooLarge, ValidationError):
        body = (await TrainingStore(store).get(layout.result_key(id), max_bytes=MAX_BODY)).body
        return Result.model_validate_json(body)
    return None


async def _has_published(store: Store, id: str) -> bool:
    result = await _result(store, id)
    return result is not None and result.status == "succeeded"


async def _uploads_of_ended(store: Store, id: str) -> set[str]:
    """The uploads that `train continue` would name again; none where it cannot read the training any more."""
    result = await _result(store, id)
    if result is None:
        return set()
    with contextlib.suppress(Rejected, ValueError):
        return _keys(load_object((await with_request(TrainingStore(store), result)).request.body()))
    return set()
