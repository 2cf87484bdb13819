"""Runs one training on this machine, with its plan, a progress bar and its product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.claims.trainings import TrainingStore
from infra.stores.open import open_store
from infra.stores.store import Store
from schemas import layout
from schemas.errors import NotFound, Rejected
from schemas.result import Result
from schemas.training import validate_training
from training import local, recipe
from training.bases import Base
from training.lease import saved
from training.lease.base_models import check_family
from training.lease.serve import make_trainer
from training.pictures import read_folder

if TYPE_CHECKING:
    from schemas.training import Training
    from training.lease.base_models import BaseModels
    from training.lease.trainer import TrainerSettings
    from training.pictures import PictureSet

people = Console(stderr=True)


async def run_here(
    document: dict[str, Any],
    images: Path | None,
    *,
    store: str,
    bases: BaseModels,
    settings: TrainerSettings,
    dry_run: bool,
    detach: bool,
) -> int:
    """Plan a training, and unless it is a dry run carry it out; returns the exit code.

    Args:
        document: the manifest's fields, without pictures.
        detach: only drop it into the store, for a trainer.

    Raises:
        DreamError: it cannot run as it is written, or on this store.
    """
    if images is None:
        raise Rejected.of_field(
            "--instance-images", "is missing; give a folder of pictures, or a .zip of one"
        )
    training = validate_training(document)
    with local.LocalPictures(images.expanduser()) as folder:
        found = read_folder(folder, training.instance_prompt)
        if dry_run and not local.has_models(store):
            await _show_plan(training, bases, found, settings.processes)
            return 0
        async with open_store(store) as opened:
            await _show_plan(training, bases.on(opened), found, settings.processes)
            if dry_run:
                return 0
            training = local.with_pictures(training, found)
            body = local.body_of(training)
            id = local.id_of(training, body)
            view = TrainingStore(opened)
            ended = await view.head(layout.result_key(id)) is not None
            dropped = not ended and await local.drop(opened, id, body, training, folder)
            if detach:
                said = f"dropped {id}" if dropped else f"{id} was dropped before"
                told = f"{id} has ended already; another --seed makes it a new one"
                runs = f"{said}; `dreamdrop trainer --store {store}` runs it"
                people.print(told if ended else runs, markup=False, highlight=False, soft_wrap=True)
                print(id)
                return 0
            return await _train(opened, store, bases, id, replace(settings, only=id))


async def _show_plan(training: Training, bases: BaseModels, found: PictureSet, processes: int) -> None:
    """Print what will happen. Raises `Rejected` for what cannot work."""
    fetched = await bases.fetch(training.base)
    try:
        base = Base.read(fetched.folder, training.base)
        if bases.store is not None:
            await check_family(bases.store, training.name, base)
        cuda = Path("/dev/nvidia0").exists()  # for the plan; the process that trains looks itself
        plan = recipe.resolve(training, base, found, device="cuda" if cuda else "cpu", cuda=cuda)
        recipe.shared(plan, processes)
    finally:
        fetched.release()
    for line in plan.lines():
        people.print(line, markup=False, highlight=False)


async def _train(opened: Store, url: str, bases: BaseModels, id: str, settings: TrainerSettings) -> int:
    view = TrainingStore(opened)
    if await view.head(layout.result_key(id)) is None:
        with _bar() as bar:
            task = bar.add_task("waiting", total=None, loss="")
            trainer = make_trainer(opened, bases, settings, lambda event: _show(bar, task, event))
            await trainer.run()
        if trainer.failed:
            return 1
    else:
        people.print("this very training has ended before; another --seed makes it a new one", markup=False)
    try:
        result = Result.model_validate_json((await view.get(layout.result_key(id))).body)
    except NotFound:
        people.print(
            "stopped, and saved; the same command again goes on from the last checkpoint", markup=False
        )
        return 4
    if result.status != "succeeded" or result.model is None:
        failure = result.failure
        people.print(f"{result.status}: {failure.message if failure else ''}", markup=False, highlight=False)
        return 1
    name = result.model.name
    people.print(f"published {name}@{result.model.revision}; draw with it: --model {name}", markup=False)
    people.print(f"report: {url.rstrip('/')}/{saved.folder_of(id)}report.html", markup=False, highlight=False)
    print(f"{name}@{result.model.revision}")
    return 0


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=people,
    )


def _show(bar: Progress, task: Any, event: dict[str, Any]) -> None:
    if event.get("event") == "step":
        loss = "no number" if event["loss"] is None else f"{event['loss']:.4f}"
        bar.update(
            task,
            description="training",
            completed=event["step"],
            total=event["steps"],
            loss=f"loss {loss}, {event['seconds']:.2f} s a step",
        )
    elif event.get("event") == "class pictures":
        bar.update(task, description="class pictures", completed=event["done"], total=event["count"], loss="")
    elif event.get("event") == "phase":
        bar.update(task, description=str(event["phase"]))
