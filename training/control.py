"""What people do with a training in a store: stop it early, go on with it, save its report."""

from __future__ import annotations

import json
from pathlib import Path

from infra.claims.kept_request import with_request
from infra.claims.trainings import TrainingStore
from infra.stores.open import open_store
from infra.stores.store import Store
from schemas import layout
from schemas.errors import DreamError, NotFound, Rejected
from schemas.result import Result
from schemas.training import parse_training, validate_training
from training.lease import saved
from training.lease.job import STOP
from training.local import body_of, is_known, require_store

#: What belongs to the report; the rest of the folder is for trainers.
_REPORT = ("report.html", "validation/")


class UnknownTraining(DreamError):
    """No training has this id."""

    def __init__(self, id: str, url: str) -> None:
        super().__init__(f"no training {id!r} in {url}; `dreamdrop status --store {url}` lists them")


async def ask_to_stop(url: str, id: str) -> str:
    """Ask the trainer of a training to publish what there is."""
    require_store(url)
    async with open_store(url) as store:
        view = TrainingStore(store)
        if await view.head(layout.result_key(id)) is not None:
            return f"{id} has ended already"
        if not await is_known(view, id):
            raise UnknownTraining(id, url)
        await view.create(layout.result_folder(id) + STOP, b"{}\n", content_type="application/json")
        return (
            f"{id} stops after its next step, and what it has learned is published; before its first step it ends "
            "without a model"
        )


async def go_on_with(url: str, id: str, steps: int) -> str:
    """Drop a training that begins at the last checkpoint of one that has ended."""
    require_store(url)
    async with open_store(url) as store:
        result = await _result(store, id, url)
        kept = await saved.checkpoints(store, id)
        if not kept:
            raise Rejected(
                "unsupported", f"{id} has no checkpoint to go on from; its status is {result.status}"
            )
        request = (await with_request(TrainingStore(store), result)).request
        if request.cut:
            raise DreamError(f"the request of {id} is gone from {url}; drop a new training")
        before = parse_training(request.body())
        wanted = kept[-1].step + steps
        document = {
            **before.model_dump(mode="json", exclude_defaults=True),
            "steps": wanted,
            "resume_from": id,
        }
        document.pop("epochs", None)
        after = validate_training(document)
        new_id = f"{id.partition('~')[0][:80]}-to-{wanted}"
        view = TrainingStore(store)
        if await view.head(layout.result_key(new_id)) is not None:
            return f"{new_id} has ended already; nothing new was dropped: ask for another number of steps"
        steps_of_it = f"it goes on from step {kept[-1].step} to step {wanted}"
        if await is_known(view, new_id) or not await view.create(
            layout.request_key(new_id), body_of(after), content_type="application/json"
        ):
            return f"{new_id} was dropped before: {steps_of_it}"
        return f"dropped {new_id}: {steps_of_it}"


async def save_report(url: str, id: str, out: Path) -> str:
    """Save the report page and the pictures that it shows; returns the page's path."""
    require_store(url)
    async with open_store(url) as store:
        await _result(store, id, url)
        prefix = saved.folder_of(id)
        folder = out / id.replace("/", "-")
        for key in [info.key async for info in store.list(prefix)]:
            name = key.removeprefix(prefix)
            if name.startswith(_REPORT):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                await store.fetch_file(key, path)
        page = folder / _REPORT[0]
        if not page.is_file():
            raise DreamError(f"{id} has no report: it ended before there was one")
        return str(page)


async def _result(store: Store, id: str, url: str) -> Result:
    view = TrainingStore(store)
    try:
        return Result.model_validate(json.loads((await view.get(layout.result_key(id))).body))
    except NotFound:
        if await is_known(view, id):
            raise DreamError(f"{id} has not ended yet") from None
        raise UnknownTraining(id, url) from None
